"""Which source wins, what it shadows, and in which order files are laid over each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sftctl.config.resolve import Resolved, resolve
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError


def chain(resolved: Resolved, path: str) -> list[tuple[object, str]]:
    """(value, origin) of what counts, then of what it shadows."""
    node = resolved.nodes[path]
    return [(node.value, str(node.origin)), *((each.value, str(each.origin)) for each in node.shadowed)]


def put(text: str) -> Assignment:
    return Assignment("--set", "set", None, text)


def test_defaults_with_nothing_given(folder: object) -> None:
    """The contract of the seed: these leaves, these defaults."""
    bundle = resolve().bundle
    assert bundle.sft.max_length == 1024
    assert bundle.sft.packing is False
    assert bundle.sft.completion_only_loss is None
    assert bundle.sft.assistant_only_loss is False
    assert bundle.sft.loss_type == "nll"
    assert bundle.sft.activation_offloading is False


def test_every_source_shadows_the_one_below(write: Callable[..., str]) -> None:
    files = [write("base.toml", "[optim]\nlearning_rate = 1e-5"), write("run.yaml", "optim: {learning_rate: 2e-5}")]
    resolved = resolve(
        files,
        env={"SFTCTL_OPTIM__LEARNING_RATE": "3e-5"},
        options=[Assignment("--learning-rate", "option", "optim.learning_rate", "4e-5")],
        overrides={"optim.learning_rate": 5e-5},
    )
    assert chain(resolved, "optim.learning_rate") == [
        (5e-5, "overrides"),
        (4e-5, "--learning-rate"),
        (3e-5, "SFTCTL_OPTIM__LEARNING_RATE"),
        (2e-5, "run.yaml:1:24"),
        (1e-5, "base.toml:2:17"),
        (2e-5, "default"),
    ]


def test_a_bundle_resolved_twice_is_equal(write: Callable[..., str]) -> None:
    file = write("run.toml", "[model]\narchitecture = {a = [1, {b = 2}]}\n[run]\ntags = ['x']")
    a, b = resolve([file]), resolve([file])
    assert a.bundle == b.bundle
    assert hash(a.bundle) == hash(b.bundle)
    assert a.digest == b.digest


def test_what_a_file_extends_comes_before_it(write: Callable[..., str]) -> None:
    write("configs/base.toml", "[run]\nseed = 1\ntags = ['base']")
    write("configs/mid.yaml", "extends: base.toml\nrun: {seed: 2}")
    top = write("top.toml", "extends = ['configs/mid.yaml']\n[run]\nrun_name = 'top'")
    resolved = resolve([top])
    assert [value for value, _ in chain(resolved, "run.seed")] == [2, 1, 42]
    assert resolved.nodes["run.tags"].origin.name == "configs/base.toml"


def test_a_diamond_reads_its_base_once(write: Callable[..., str]) -> None:
    """base <- left, base <- right, top <- left, right: the base does not shadow the left again."""
    write("base.toml", "[run]\nseed = 1")
    write("left.toml", "extends = ['base.toml']\n[run]\nseed = 2")
    write("right.toml", "extends = ['base.toml']\n[optim]\nlearning_rate = 1e-4")
    top = write("top.toml", "extends = ['left.toml', 'right.toml']")
    assert [value for value, _ in chain(resolve([top]), "run.seed")] == [2, 1, 42]


def test_a_file_that_is_named_again_counts_again(write: Callable[..., str]) -> None:
    base, run = write("base.toml", "[run]\nseed = 1"), write("run.toml", "extends = ['base.toml']\n[run]\nseed = 2")
    assert resolve([base, run]).bundle.run.seed == 2
    assert resolve([run, base]).bundle.run.seed == 1


def test_a_leaf_is_replaced_whole(write: Callable[..., str]) -> None:
    files = [
        write("a.toml", "[model]\narchitecture = {a = 1, b = 2}\n[run]\ntags = ['x', 'y']\n[env]\nA = '1'\nB = '1'"),
        write("b.toml", "[model]\narchitecture = {b = 3}\n[run]\ntags = ['z']\n[env]\nB = '2'"),
    ]
    bundle = resolve(files).bundle
    assert bundle.model.architecture == {"b": 3}
    assert bundle.run.tags == ("z",)
    assert bundle.env == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["data.datasets+=[{path='/b.jsonl'}]"], ["/a.jsonl", "/b.jsonl"]),
        (["data.datasets+=[{path='/b.jsonl'}]", "data.datasets+=/c.jsonl"], ["/a.jsonl", "/b.jsonl", "/c.jsonl"]),
        (["data.datasets=[{path='/b.jsonl'}]"], ["/b.jsonl"]),
        (["~data.datasets"], []),
        (["~data"], []),
        (["data.datasets=[]"], []),
    ],
)
def test_set_on_a_list(write: Callable[..., str], texts: list[str], expected: list[str]) -> None:
    file = write("run.toml", "[[data.datasets]]\npath = '/a.jsonl'")
    bundle = resolve([file], options=[put(text) for text in texts]).bundle
    assert [source.path for source in bundle.data.datasets] == expected


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("optim.betas=[0.9, 0.95]", "optim.betas", (0.9, 0.95)),
        ("optim.lr_scheduler_type=cosine", "optim.lr_scheduler_type", "cosine"),
        ('optim.lr_scheduler_type="cosine"', "optim.lr_scheduler_type", "cosine"),
        ("optim.max_grad_norm=none", "optim.max_grad_norm", None),
        ("train.max_steps=1e3", "train.max_steps", 1000),
        ("run.run_name=5", "run.run_name", "5"),
        ("run.run_name=a=b", "run.run_name", "a=b"),
        ("sft.packing=true", "sft.packing", True),
        ("train.gradient_checkpointing=false", "train.gradient_checkpointing", False),
        ("train.gradient_checkpointing=selective", "train.gradient_checkpointing", "selective"),
        ("run.tags+=x", "run.tags", ("x",)),
        ("model.architecture.hidden_size=64", "model.architecture", {"b": 2, "hidden_size": 64}),
        ("model.architecture.name=llama", "model.architecture", {"b": 2, "name": "llama"}),
        ("model.architecture.rope.theta=1e6", "model.architecture", {"b": 2, "rope": {"theta": 1e6}}),
        ('model.architecture."a.b"=true', "model.architecture", {"b": 2, "a.b": True}),
        ("model.architecture={a = 1}", "model.architecture", {"a": 1}),
        ("model.architecture.b=none", "model.architecture", {"b": None}),
    ],
)
def test_set_reads_a_value_by_the_leafs_type(write: Callable[..., str], text: str, path: str, expected: object) -> None:
    file = write("run.toml", "[model]\narchitecture = {b = 2}")
    value = resolve([file], options=[put(text)]).nodes[path].value
    assert value == expected
    assert type(value) is not int or type(expected) is int


def test_set_of_a_variable_and_its_reset(write: Callable[..., str]) -> None:
    file = write("run.toml", "[env]\nA = '1'\nB = '2'")
    assert resolve([file], options=[put("env.A=3"), put("~env.B")]).bundle.env == {"A": "3"}


def test_a_reset_says_who_reset_and_what(write: Callable[..., str]) -> None:
    resolved = resolve([write("run.toml", "[optim]\nmax_grad_norm = 5.0")], options=[put("~optim.max_grad_norm")])
    assert chain(resolved, "optim.max_grad_norm") == [
        (1.0, "--set"),
        (5.0, "run.toml:2:17"),
        (1.0, "default"),
    ]


def test_a_list_by_repetition_replaces_that_of_a_file(write: Callable[..., str]) -> None:
    file = write("run.toml", "[run]\ntags = ['x']\n[optim]\nbetas = [0.5, 0.5]")
    options = [Assignment("--tags", "option", "run.tags", each) for each in ("a", "b,c")]
    options += [Assignment("--betas", "option", "optim.betas", each) for each in ("0.9", "0.95")]
    bundle = resolve([file], options=options).bundle
    assert bundle.run.tags == ("a", "b,c")
    assert bundle.optim.betas == (0.9, 0.95)


def test_a_shadowed_value_is_held_to_its_type_too(write: Callable[..., str]) -> None:
    """A file that is wrong is wrong, also where an option would have hidden it."""
    file = write("run.toml", "[run]\nseed = 'x'")
    with pytest.raises(ConfigError, match=r"run\.seed: expected a whole number, got text 'x'"):
        resolve([file], options=[Assignment("--seed", "option", "run.seed", "1")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.toml", ""),
        ("empty.yaml", ""),
        ("comment.yaml", "# nothing\n"),
        ("empty.json", ""),
        ("bom.toml", b"\xef\xbb\xbf[run]\nseed = 7"),
        ("crlf.toml", b"[run]\r\nseed = 7\r\n"),
        ("crlf.yaml", b"run:\r\n  seed: 7\r\n"),
        ("upper.TOML", "[run]\nseed = 7"),
        ("short.yml", "run: {seed: 7}"),
        ("plain.json", '{"run": {"seed": 7}}'),
    ],
)
def test_files_that_read_well(write: Callable[..., str], name: str, content: str | bytes) -> None:
    seed = 7 if "7" in str(content) else 42
    assert resolve([write(name, content)]).bundle.run.seed == seed


@pytest.mark.parametrize(
    ("content", "path", "expected"),
    [
        ("[train]\nmax_steps = 1e3", "train.max_steps", 1000),
        ("[train]\nmax_steps = 'none'", "train.max_steps", None),
        ("[optim]\nlearning_rate = 1", "optim.learning_rate", 1.0),
        ("[distributed]\nstrategy = 'none'", "distributed.strategy", "none"),
        ("[run]\ntags = ['none']", "run.tags", ("none",)),
        ("[model]\narchitecture = {a = 'none', b = {c = 'none'}}", "model.architecture", {"a": None, "b": {"c": None}}),
        ("[env]\nA = 'none'", "env.A", "none"),
        ("[train]\ngradient_checkpointing = false", "train.gradient_checkpointing", False),
    ],
)
def test_readings(write: Callable[..., str], content: str, path: str, expected: object) -> None:
    value = resolve([write("run.toml", content)]).nodes[path].value
    assert value == expected
    assert type(value) is type(expected) or isinstance(expected, dict)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("1e-5", "optim.learning_rate", 1e-5),
        ("5e5", "train.max_steps", 500_000),
        ("010", "train.max_steps", 10),
        ("1e3", "train.max_steps", 1000),
        ("null", "train.max_steps", None),
        ("~", "optim.max_grad_norm", None),
        ("no", "run.run_name", "no"),
        ("1:30", "run.run_name", "1:30"),
    ],
)
def test_yaml_readings(write: Callable[..., str], text: str, path: str, expected: object) -> None:
    group, _, name = path.partition(".")
    assert resolve([write("run.yaml", f"{group}:\n  {name}: {text}")]).nodes[path].value == expected


@pytest.mark.parametrize(
    ("name", "text", "path", "expected"),
    [
        ("SFTCTL_RUN__TAGS", "a, b", "run.tags", ("a", "b")),
        ("SFTCTL_RUN__TAGS", '["a, b", "c"]', "run.tags", ("a, b", "c")),
        ("SFTCTL_RUN__TAGS", "[]", "run.tags", ()),
        ("SFTCTL_OPTIM__BETAS", "0.9,0.95", "optim.betas", (0.9, 0.95)),
        ("SFTCTL_SFT__PACKING", "True", "sft.packing", True),
        ("SFTCTL_TRAIN__MAX_STEPS", "none", "train.max_steps", None),
        ("SFTCTL_RUN__RUN_NAME", "007", "run.run_name", "007"),
        ("SFTCTL_MODEL__ARCHITECTURE", "{a = 1}", "model.architecture", {"a": 1}),
        ("SFTCTL_ENV__lower_case", "x", "env.lower_case", "x"),
        ("SFTCTL_PEFT__LORA_TARGET_MODULES", "none", "peft.lora_target_modules", None),
        ("SFTCTL_RUN__SEED", "", "run.seed", 42),
        ("SFTCTL_NOTHING_AT_ALL", "", "run.seed", 42),
        ("SFTCTL_TEST_SOMETHING", "x", "run.seed", 42),
    ],
)
def test_environment_readings(folder: object, name: str, text: str, path: str, expected: object) -> None:
    assert resolve(env={name: text, "PATH": "/bin"}).nodes[path].value == expected


def test_the_environment_is_left_aside_unless_it_is_given(monkeypatch: pytest.MonkeyPatch, folder: object) -> None:
    monkeypatch.setenv("SFTCTL_RUN__SEED", "7")
    assert resolve().bundle.run.seed == 42


@pytest.mark.parametrize(
    "extra",
    [
        "[optim]\nfoo = 1",
        "[foo]\na = 1",
        "foo = 1",
        "[[data.datasets]]\npath='x'\nfoo = 1",
        "[data]\ndatasets=[{path='x', foo={}}]",
    ],
)
def test_no_unknown_key_is_accepted_anywhere(write: Callable[..., str], extra: str) -> None:
    with pytest.raises(ConfigError, match="foo: unknown"):
        resolve([write("run.toml", extra)])
