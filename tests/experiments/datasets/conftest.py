"""A small table of interactions, and a place to write it to."""

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def table():
    """12 users with 8 to 10 of 50 items each, rows in random order."""
    random = np.random.default_rng(0)
    rows = [
        (f"user {user}", f"Item, {item:02}", 1_700_000_000 + 60 * step)
        for user in range(12)
        for step, item in enumerate(random.permutation(50)[: random.integers(8, 11)])
    ]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"]).sample(frac=1, random_state=0, ignore_index=True)


@pytest.fixture
def save(tmp_path):
    def write(content, name="plays.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix.lower() == ".csv":
            content.to_csv(path, index=False)
        else:
            content.to_parquet(path)
        return path

    return write
