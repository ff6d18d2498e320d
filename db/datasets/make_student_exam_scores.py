"""Make student_exam_scores.csv: 200 synthetic students, the same ones every time.

    python3 db/datasets/make_student_exam_scores.py > db/datasets/student_exam_scores.csv

    hours_studied       uniform on 1 to 12, hours a week
    sleep_hours         normal, mean 7, standard deviation 1.2, kept within 4 and 10, hours a night
    attendance_percent  uniform on 50 to 100
    previous_scores     normal, mean 65, standard deviation 12, kept within 30 and 100
    exam_score          3 * hours_studied + 1.5 * sleep_hours + 0.2 * attendance_percent + 0.35 * previous_scores
                        + normal noise of standard deviation 3, kept within 0 and 100

All rounded to one decimal, the score computed from the rounded features. Only the standard library: its generator
gives the same numbers for a seed on every version of Python.
"""

import csv
import random
import sys
from typing import TextIO

SEED = 20240501
STUDENTS = 200


def write(stream: TextIO) -> None:
    """Write the file, comment lines first."""
    source = random.Random(SEED)  # noqa: S311  # not for secrets

    def normal(mean: float, deviation: float, low: float, high: float) -> float:
        return round(min(max(source.gauss(mean, deviation), low), high), 1)

    stream.write("# Synthetic: 200 students who do not exist, made by make_student_exam_scores.py beside this file,\n")
    stream.write(f"# which states the formula of exam_score and the seed, {SEED}.\n")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["hours_studied", "sleep_hours", "attendance_percent", "previous_scores", "exam_score"])
    for _ in range(STUDENTS):
        hours = round(source.uniform(1, 12), 1)
        sleep = normal(7, 1.2, 4, 10)
        attendance = round(source.uniform(50, 100), 1)
        previous = normal(65, 12, 30, 100)
        score = normal(3 * hours + 1.5 * sleep + 0.2 * attendance + 0.35 * previous, 3, 0, 100)
        writer.writerow([hours, sleep, attendance, previous, score])


if __name__ == "__main__":
    write(sys.stdout)
