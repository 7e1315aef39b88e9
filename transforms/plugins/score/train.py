"""Trains the model of this plugin, and writes it to src/model.rs.

    python3 transforms/plugins/score/train.py

The model is a logistic regression. Its training data is synthetic: 20,000 payments from a fixed seed, of which 1 % are
fraudulent by a hidden rule with noise. Newton's method finds the coefficients; nothing but Python's standard library is
needed, and the result is always the same. Replace `payments` by your own data.
"""

import math
import random
from pathlib import Path

NAMES = ["ln(1 + amount)", "abroad", "at night", "ln(1 + amount) if abroad"]


def features(amount, abroad, hour):
    """As `features` in src/lib.rs."""
    size = math.log1p(max(amount, 0.0))
    return [size, float(abroad), float(hour < 6), size if abroad else 0.0]


def payments(count):
    rng = random.Random(2026)
    for _ in range(count):
        amount = rng.lognormvariate(3.4, 1.2)
        abroad = rng.random() < 0.12
        hour = rng.choices(range(24), [1] * 6 + [4] * 18)[0]
        risk = -8.2 + 0.65 * math.log1p(amount) + 1.1 * abroad + 0.8 * (hour < 6) + 0.35 * math.log1p(amount) * abroad
        is_fraud = rng.random() < 1 / (1 + math.exp(-risk))
        yield features(amount, abroad, hour), is_fraud


def solve(matrix, vector):
    """Gaussian elimination with pivots."""
    rows = [row[:] + [value] for row, value in zip(matrix, vector)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [left - factor * right for left, right in zip(rows[row], rows[column])]
    return [rows[index][size] / rows[index][index] for index in range(size)]


def train(data):
    size = len(NAMES) + 1
    weights = [0.0] * size
    for _ in range(12):
        gradient = [0.0] * size
        hessian = [[1e-6 * (row == column) for column in range(size)] for row in range(size)]
        for inputs, is_fraud in data:
            inputs = [1.0, *inputs]
            score = 1 / (1 + math.exp(-sum(weight * value for weight, value in zip(weights, inputs))))
            for row in range(size):
                gradient[row] += (is_fraud - score) * inputs[row]
                for column in range(size):
                    hessian[row][column] += score * (1 - score) * inputs[row] * inputs[column]
        weights = [weight + step for weight, step in zip(weights, solve(hessian, gradient))]
    return [round(weight, 4) for weight in weights]


def main():
    data = list(payments(20_000))
    intercept, *weights = train(data)
    lines = [
        "//! The coefficients of the model. Written by `train.py`.",
        "",
        f"pub(crate) const INTERCEPT: f64 = {intercept};",
        "",
        "/// In the order of `features`.",
        f"pub(crate) const WEIGHTS: [f64; {len(weights)}] = [",
        *[f"    {weight}, // {name}" for name, weight in zip(NAMES, weights)],
        "];",
    ]
    (Path(__file__).parent / "src/model.rs").write_text("\n".join(lines) + "\n")
    print(f"{sum(is_fraud for _, is_fraud in data)} of {len(data)} payments are fraudulent; weights {intercept} {weights}")


if __name__ == "__main__":
    main()
