import importlib
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_bayestune as kbt

keras_hub = pytest.importorskip("keras_hub")

WORDS = ["cat", "dog", "sun", "rain", "tree", "stone"]
ROWS = [
    {"prompt": f"{one} {two}", "response": f"{two} {one}"}
    for one in WORDS
    for two in WORDS
]
# KerasHub 0.32 leaves the file of Gemma's vocabulary open.
UNCLOSED = "ignore:unclosed file.*vocabulary.spm:ResourceWarning"
FAMILIES = ["Gemma3", "Llama3", "Qwen3", "GPT2"]


@pytest.fixture(scope="module")
def causal_lm(root):
    sys.path.insert(0, str(root / "examples"))
    yield importlib.import_module("causal_lm")
    sys.path.remove(str(root / "examples"))


@pytest.fixture(scope="module")
def rows(causal_lm):
    return importlib.import_module("causal_lm_rows")


@pytest.fixture(scope="module")
def task_module(causal_lm):
    return importlib.import_module("causal_lm_task")


def sentence_pieces():
    """A tokenizer file of Gemma's kind that knows the words."""
    import io

    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)]),
        model_writer=file,
        vocab_size=4 + len(WORDS),
        model_type="WORD",
        minloglevel=2,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "bos_piece": "<bos>"},
        **{"eos_piece": "<eos>", "unk_piece": "<unk>"},
    )
    return file.getvalue()


def byte_pairs(*special):
    """Vocabulary and merges of the letters of the words; the special tokens first."""
    letters = sorted({letter for word in WORDS for letter in word} | {"Ġ", "Ġc"})
    return {token: i for i, token in enumerate([*special, *letters])}, ["Ġ c"]


def save_tiny(family, folder):
    """Write a preset of random weights."""
    models = keras_hub.models
    if family == "Gemma3":
        tokenizer = models.Gemma3Tokenizer(sentence_pieces(), has_vision_tokens=False)
        own = {"head_dim": 4, "image_size": 16, "num_key_value_heads": 1}
    elif family == "Llama3":
        names = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
        names += "<|start_header_id|>", "<|end_header_id|>"
        tokenizer = models.Llama3Tokenizer(*byte_pairs("!!", *names))
        own = {"num_key_value_heads": 1}
    elif family == "Qwen3":
        tokenizer = models.Qwen3Tokenizer(*byte_pairs("<|endoftext|>", "<|im_end|>"))
        own = {"head_dim": 4, "num_key_value_heads": 1}
    else:
        tokenizer = models.GPT2Tokenizer(*byte_pairs("<|endoftext|>"))
        own = {"num_heads": 2, "max_sequence_length": 32}
    if family != "GPT2":
        own["num_query_heads"] = 2
    backbone = getattr(models, f"{family}Backbone")(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        hidden_dim=8,
        intermediate_dim=16,
        **own,
    )
    preprocessor = getattr(models, f"{family}CausalLMPreprocessor")(
        tokenizer, sequence_length=16
    )
    task = getattr(models, f"{family}CausalLM")(
        backbone=backbone, preprocessor=preprocessor
    )
    task.save_to_preset(str(folder))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """`preset(family)` is the folder of a tiny model, written once."""
    folders = {}

    def of(family):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, folders[family])
        return str(folders[family])

    return of


@pytest.fixture
def jsonl(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    return str(file)


@pytest.mark.filterwarnings(UNCLOSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_stages_on_each_family(causal_lm, preset, jsonl, family, tmp_path):
    result = causal_lm.main(
        ["--smoke", "--preset", preset(family), "--jsonl", jsonl, "--fraction", "0.1"]
        + ["--learning-rate", "0.5", "--out", str(tmp_path / "out")]
    )
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    task = keras_hub.models.CausalLM.from_preset(preset(family))
    scalars = sum(math.prod(v.shape) for v in task.trainable_variables)
    delta = kbt.SparseDelta.load(tmp_path / "out" / "delta.safetensors")
    assert result["trained scalars"] == delta.count == int(0.1 * scalars)
    assert [row["wanted"] for row in result["texts"]] == ["cat cat", "dog cat"]
    before = task.get_weights()
    with delta.applied(task):
        changed = [a != b for a, b in zip(before, task.get_weights(), strict=True)]
    assert sum(map(np.sum, changed)) > 0.9 * delta.count
    if keras.backend.backend() == "torch":  # where nothing is compiled
        task.compile(sampler="greedy")
        prompts = [row["prompt"] for row in result["texts"]]
        base = task.generate(prompts, max_length=16)
        assert base == [row["base"] for row in result["texts"]]
        with delta.applied(task):
            tuned = task.generate(prompts, max_length=16)
        assert tuned == [row["tuned"] for row in result["texts"]]


@pytest.fixture
def run(causal_lm, task_module, preset, jsonl, tmp_path, monkeypatch):
    """Run the example on Gemma 3; returns its result and the task it generates with."""
    if keras.backend.backend() != "torch":
        pytest.skip("what differs by backend is in the test above")
    tell, tasks = task_module.side_by_side, []

    def remember(task, *rest):
        tasks.append(task)
        return tell(task, *rest)

    monkeypatch.setattr(task_module, "side_by_side", remember)

    def example(*options):
        given = ["--smoke", "--preset", preset("Gemma3"), "--jsonl", jsonl]
        result = causal_lm.main([*given, "--out", str(tmp_path / "out"), *options])
        return result, tasks[-1]

    return example


@pytest.mark.filterwarnings(UNCLOSED)
def test_all_weights(run, preset):
    options = "--method", "full", "--dtype", "mixed_bfloat16"
    result, tuned = run(*options, "--template", "{prompt} sun")
    base = keras_hub.models.CausalLM.from_preset(preset("Gemma3"))
    assert result["texts"][1]["prompt"] == "cat dog sun"
    changed = 0
    for one, two in zip(base.get_weights(), tuned.get_weights(), strict=True):
        changed += np.sum(one != two)
    sizes = [math.prod(v.shape) for v in base.trainable_variables]
    assert result["trained scalars"] == sum(sizes)
    assert changed > 0.9 * sum(sizes)  # those of the file, with which it generates


@pytest.mark.filterwarnings(UNCLOSED)
def test_few_weights_in_bfloat16(run, tmp_path):
    result, base = run("--dtype", "bfloat16", "--fraction", "0.1", "--remat")
    delta = kbt.SparseDelta.load(tmp_path / "out" / "delta.safetensors")
    assert {v.dtype for v in delta.variables.values()} == {"bfloat16"}
    before = base.get_weights()
    with delta.applied(base):
        changed = [a != b for a, b in zip(before, base.get_weights(), strict=True)]
    assert 0.5 * delta.count < sum(map(np.sum, changed)) <= delta.count


def test_what_adam_cannot_train_is_refused(causal_lm, jsonl, capsys):
    options = ["--jsonl", jsonl, "--method", "full", "--dtype", "bfloat16"]
    with pytest.raises(SystemExit):
        causal_lm.arguments(options)
    assert "Use --dtype mixed_bfloat16" in capsys.readouterr().err


@pytest.mark.filterwarnings(UNCLOSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_response_counts(causal_lm, rows, preset, family):
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(preset(family))
    tokenizer = preprocessor.tokenizer
    inputs, targets, weights = rows.to_arrays(preprocessor, ROWS[1:3], 16)
    if family == "Gemma3":  # the one that knows prompts
        texts = {
            f"{part}s": [row[part] for row in ROWS[1:3]]
            for part in ("prompt", "response")
        }
        wanted = preprocessor(texts, sequence_length=16)
        for one, two in zip(
            keras.tree.flatten((inputs, targets, weights)),
            keras.tree.flatten(wanted),
            strict=True,
        ):
            np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(two))
    for row, ids, known, following, weight in zip(
        ROWS[1:3], *inputs.values(), targets, weights, strict=True
    ):
        learned = following[weight == 1]
        assert learned[-1] == tokenizer.end_token_id
        assert tokenizer.detokenize(learned[:-1].tolist()) == row["response"]
        assert list(ids[1:]) == list(following[:-1])
        first = int(np.argmax(weight))
        start = [] if tokenizer.start_token_id is None else [tokenizer.start_token_id]
        assert list(ids[: first + 1]) == start + list(tokenizer(row["prompt"]))
        assert known.sum() == first + 1 + len(learned)


def test_a_prompt_that_leaves_no_room(rows, preset):
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(preset("Qwen3"))
    long = {"prompt": "cat dog sun", "response": "cat"}
    with pytest.raises(ValueError, match="In 1 of 2 rows the prompt alone fills the 9"):
        rows.to_arrays(preprocessor, [long, {"prompt": "cat", "response": "a"}], 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": "b"}', r"Object 1 has \['answer', 'prompt'\]"),
        ("\n", "is empty"),
    ],
)
def test_rows_that_are_none(rows, tmp_path, text, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        rows.read_rows(file)


def test_each_pass_takes_every_row_once(rows):
    arrays = {"token_ids": np.arange(6)}, np.arange(6), np.ones(6)
    batches = rows.Batches(arrays, batch_size=2, steps=6, seed=0)
    seen = [int(i) for n in range(len(batches)) for i in batches[n][1]]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]
    inputs, targets, _ = batches[3]
    np.testing.assert_array_equal(inputs["token_ids"], targets)


def test_a_preset_that_cannot_be_had(causal_lm, monkeypatch, tmp_path, jsonl):
    options = ["--preset", "gpt2_base_en", "--jsonl", jsonl, "--out", str(tmp_path)]

    def offline(*args, **kwargs):
        raise ConnectionError("Failed to resolve 'api.kaggle.com'")

    monkeypatch.setattr(keras_hub.models.CausalLM, "from_preset", offline)
    with pytest.raises(SystemExit, match=r"(?s)resolve 'api.*--preset FOLDER"):
        causal_lm.main(options)


def test_help_needs_no_backend(root):
    """It shows every default, and comes before the imports that take seconds."""
    code = (
        "import runpy, sys\n"
        "sys.path.insert(0, 'examples')\n"  # as for a script
        "sys.argv = ['causal_lm.py', '--help']\n"
        "try:\n    runpy.run_path('examples/causal_lm.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'keras', 'tensorflow', 'numpy'} & set(sys.modules)\n"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "(default: gemma3_instruct_270m)" in words
    assert "(default: None)" not in words  # what is required has none
    options = done.stdout.split("options:")[1]
    # Two for the learning rate, none for the file and the backup.
    assert options.count("(default:") + 1 == options.count("\n  --")
