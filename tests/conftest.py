"""What every test starts from: few threads, no display, one seed, fresh names."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Files whose few tests take long: at the end, one process would wait for the other.
LONG = ("test_docs.py", "examples", "benchmarks", "reliability", "test_quantized.py")


def pytest_collection_modifyitems(items):
    """Begin with what takes long; refuse names that differ from process to process.

    pytest-xdist needs equal names: an object among the parameters needs `ids=`, else
    its address is in the name.
    """
    items.sort(key=lambda item: not any(p in LONG for p in item.path.parts))
    changing = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if changing:
        raise pytest.UsageError(f"Give these parameters stable ids: {changing}")


# Set before the first import of a backend, which reads them once. One thread: the
# models here are tiny, and on busy cores a second one mostly waits for the first.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True)
def _fresh_start():
    import keras

    # Numbered names (`dense_1`) and global policies then do not depend on which tests
    # ran before.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def root():
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def save_tiny_bert():
    """`save_tiny_bert(folder, words, length)` writes a preset of random weights."""
    models = pytest.importorskip("keras_hub").models

    def save(folder, words, length):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        models.BertBackbone(
            vocabulary_size=len(vocabulary),
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=length,
        ).save_to_preset(folder)
        models.BertTokenizer(vocabulary).save_to_preset(folder)
        return str(folder)

    return save
