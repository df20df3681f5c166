"""Prompts and responses for `causal_lm.py`: lines of a file, tokens, batches."""

import json

import keras
import numpy as np


def read_rows(file, template="{prompt}"):
    """Return the prompts, each within `template`, and the responses of a jsonl file."""
    rows = [json.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not {"prompt", "response"} <= set(row):
            raise ValueError(
                f'Each line of {file} must have "prompt" and "response". Object '
                f"{number} has {sorted(row)}."
            )
    if not rows:
        raise ValueError(f"{file} is empty: it needs a prompt and a response per line.")
    return [
        {"prompt": template.format(prompt=row["prompt"]), "response": row["response"]}
        for row in rows
    ]


def to_arrays(preprocessor, rows, length):
    """Return the model's inputs, the next tokens, and which of these are responses.

    What KerasHub's own preprocessor of Gemma 3 does with prompts and responses; that of
    the other families takes one text, and weighs prompt and response alike. A row that
    is too long loses its end.
    """
    tokenizer = preprocessor.tokenizer
    start, end = [tokenizer.start_token_id], [tokenizer.end_token_id]
    if start == [None] or not preprocessor.add_start_token:  # Qwen has none
        start = []
    shape = len(rows), length + 1
    tokens = np.full(shape, tokenizer.pad_token_id, "int32")
    is_token, is_response = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        prompt, response = (
            list(map(int, tokenizer(row[part]))) for part in ("prompt", "response")
        )
        known = len(start + prompt)
        ids = (start + prompt + response + end)[: length + 1]
        tokens[i, : len(ids)] = ids
        is_token[i, : len(ids)] = True
        is_response[i, known : len(ids)] = True
    lost = int(np.sum(~is_response.any(axis=1)))
    if lost:
        raise ValueError(
            f"In {lost} of {len(rows)} rows the prompt alone fills the {length} "
            "tokens, so that nothing of the response is left. Raise --sequence-length, "
            "or leave these rows out."
        )
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": is_token[:, :-1]}
    return inputs, tokens[:, 1:], is_response[:, 1:].astype("float32")


class Batches(keras.utils.PyDataset):
    """`steps` batches of the rows, which are shuffled anew for each pass."""

    def __init__(self, arrays, batch_size, steps, seed):
        super().__init__()
        self.arrays, self.batch_size, self.steps = arrays, batch_size, steps
        rows, generator = len(arrays[1]), np.random.default_rng(seed)
        passes = -(-steps * batch_size // rows)
        self.order = np.concatenate(
            [generator.permutation(rows) for _ in range(passes)]
        )

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return keras.tree.map_structure(lambda array: array[rows], self.arrays)
