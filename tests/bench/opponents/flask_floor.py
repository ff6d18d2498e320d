"""The floor: a Flask application that parses JSON and returns a constant."""

from flask import Flask, request

app = Flask(__name__)


@app.post("/predict")
def predict() -> dict[str, int]:
    request.get_json()
    return {"prediction": 1}
