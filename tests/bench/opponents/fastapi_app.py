"""What a careful person writes by hand: FastAPI, pydantic, and scikit-learn fed with arrays."""

import os
import pickle
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
with Path(os.environ["MODEL"]).open("rb") as file:
    model = pickle.load(file)  # noqa: S301
classes = [str(name) for name in model.classes_]


class Row(BaseModel):
    """An iris."""

    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


@app.post("/predict")
def predict(row: Row) -> dict[str, object]:
    """A class with its probabilities."""
    matrix = np.array([[row.sepal_length, row.sepal_width, row.petal_length, row.petal_width]])
    probabilities = model.predict_proba(matrix)[0].tolist()
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return {
        "prediction": {
            "class": classes[best],
            "confidence": probabilities[best],
            "probabilities": dict(zip(classes, probabilities, strict=True)),
        }
    }
