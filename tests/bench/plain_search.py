"""The opponent of the pipeline's bench: the same search as people write it by hand, with scikit-learn and optuna."""

import sys

import numpy as np
import optuna
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split

path, trials, folds, trees = sys.argv[1], *map(int, sys.argv[2:5])
frame = pd.read_csv(path)
features, target = frame.drop(columns="label").to_numpy(np.float64), frame["label"].to_numpy()
learn, test, learn_target, test_target = train_test_split(
    features, target, test_size=0.25, random_state=42, stratify=target
)


def make(**chosen: float) -> RandomForestClassifier:
    return RandomForestClassifier(n_estimators=trees, random_state=0, max_depth=10, **chosen)


def objective(trial: optuna.Trial) -> float:
    chosen = {"min_impurity_decrease": trial.suggest_float("0.min_impurity_decrease", 0, 1e-7)}
    splitter = StratifiedKFold(folds, shuffle=True, random_state=42)
    return float(cross_val_score(make(**chosen), learn, learn_target, cv=splitter).mean())


optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
study.optimize(objective, n_trials=trials)
best = make(**{name.partition(".")[2]: value for name, value in study.best_params.items()}).fit(learn, learn_target)
print(accuracy_score(test_target, best.predict(test)))  # noqa: T201
