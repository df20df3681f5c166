"""What a block has done so far, in a folder: one that was killed goes on from there."""

import json

import numpy as np

import keras_bayestune as kbt


class Kept:
    """Makes each thing once; keeps nothing without a folder."""

    def __init__(self, folder, block):
        self.folder = folder and folder / "-".join(map(str, block.values()))
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def scores(self, make):
        """Return scores, from `make()` the first time."""
        if not self.folder:
            return make()
        file = self.folder / "scores.npz"
        if not file.exists():
            _whole(file, lambda opened: np.savez(opened, **make()))
        with np.load(file) as arrays:
            return dict(arrays)

    def delta(self, seed, make):
        """Return the delta of a seed."""
        if not self.folder:
            return make()
        file = self.folder / f"{seed}.safetensors"
        if not file.exists():
            make().save(file)
        return kbt.SparseDelta.load(file)

    def records(self, method, make):
        """Return the records of a method."""
        if not self.folder:
            return make()
        file = self.folder / f"{method}.json"
        if not file.exists():
            text = json.dumps(make()).encode()
            _whole(file, lambda opened: opened.write(text))
        return json.loads(file.read_text())


def _whole(file, write):
    unfinished = file.with_suffix(".part")
    with open(unfinished, "wb") as opened:
        write(opened)
    unfinished.replace(file)
