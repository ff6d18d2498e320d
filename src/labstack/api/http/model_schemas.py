"""The schemas of one model, from its contract: its rows, and the bodies and answers of its predictions."""

from labstack.api.http.operations import OBJECT, Schema
from labstack.model.contract import LARGEST, Contract, Feature

NUMBER: Schema = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}


def model_schemas(key: str, contract: Contract) -> dict[str, Schema]:
    """Return the schemas of a model, by names that begin with the model's key."""
    reference = f"#/components/schemas/{key}."
    row = _closed({feature.name: _field(feature) for feature in contract.features})
    row["examples"] = [contract.sample.input]
    rows = {"type": "array", "items": {"$ref": f"{reference}row"}, "minItems": 1}
    body = {"anyOf": [{"$ref": f"{reference}row"}, rows, _closed({"instances": rows})]}
    schemas = {
        "row": row,
        "body": body,
        "invocations": _invocations(contract, rows),
        "result": _result(contract),
        "answer": _answer({"$ref": f"{reference}result"}),
    }
    return {f"{key}.{name}": schema for name, schema in schemas.items()}


def _result(contract: Contract) -> Schema:
    """Return the schema of one row's prediction."""
    if contract.task == "regression":
        return {"type": "object", "required": ["value"], "properties": {"value": {"type": ["number", "null"]}}}
    share = {"type": "number", "minimum": 0, "maximum": 1.000001}  # a sum of rounded numbers
    return {
        "type": "object",
        "required": ["class"],
        "properties": {
            "class": {"enum": list(contract.classes)},
            "confidence": share,
            "probabilities": {"type": "object", "properties": dict.fromkeys(contract.classes, share)},
        },
    }


def _answer(result: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["request_id"],
        "properties": {
            "prediction": result,
            "predictions": {"type": "array", "items": result},
            "model": OBJECT,
            "warnings": {"type": "array", "items": OBJECT},
            "request_id": {"type": "string"},
        },
    }


def _invocations(contract: Contract, rows: Schema) -> Schema:
    """Return the schema of a table in any of the forms of MLflow's scoring protocol."""
    fields = [_field(feature) for feature in contract.features]
    width = {"minItems": len(fields), "maxItems": len(fields)}
    matrix = {
        "type": "array",
        "items": {"type": "array", "prefixItems": fields, "items": False, **width},
        "minItems": 1,
    }
    names = {"const": [feature.name for feature in contract.features]}
    tables: dict[str, Schema] = {
        "dataframe_split": _closed({"data": matrix}, columns=names)
        | {"description": "As of pandas' to_dict('split')."},
        "dataframe_records": rows,
        "instances": {"anyOf": [rows, matrix]},
        "inputs": {"anyOf": [rows, matrix], "description": "Or an object of columns, each a list of values."},
    }
    return {"anyOf": [_closed({form: table}, params={"type": ["object", "null"]}) for form, table in tables.items()]}


def _closed(properties: dict[str, Schema], **optional: Schema) -> Schema:
    """Return the schema of an object with all of these properties, perhaps the optional ones, and no others."""
    both = properties | optional
    return {"type": "object", "required": list(properties), "properties": both, "additionalProperties": False}


def _field(feature: Feature) -> Schema:
    if feature.categories:
        return {"enum": [*feature.categories, *([None] if feature.missing else [])]}
    number = NUMBER | ({"type": ["number", "null"]} if feature.missing else {})
    return number | {"description": f"{feature.minimum:g} to {feature.maximum:g} in training."}
