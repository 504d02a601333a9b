"""Every method of tuning on every family of networks, small and with random weights."""

from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from small_networks import FAMILIES, HIDDEN, INNER, LAYERS, save_network
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import (
    TUNING_SETTINGS,
    BackboneConfig,
    HeadConfig,
    OptimizerConfig,
    TuningConfig,
    TuningMethod,
)
from m2v_finetune.model import TaskModel
from m2v_finetune.model.metadata import is_adapter_enough
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.run_progress import Progress
from m2v_finetune.tuning import METHODS, describe_tuning

TASK = Tagging(labels=("drums", "flute", "minor"), label_column="tags")
CASES = {method: TuningConfig(method=method) for method in get_args(TuningMethod)}
CASES["lora, attention"] = TuningConfig(method="lora", r=3, lora_targets="attention")
CASES["top_layers"] = TuningConfig(method="top_layers", num_top_layers=1)
CASES["adapter"] = TuningConfig(method="adapter", adapter_size=4)
CASES["full, conv encoder too"] = TuningConfig(method="full", train_conv_encoder=True)
TRAINABLE = [name for name in CASES if name != "probe"]
# The modules are found by family, which `test_exactly_these_learn` checks for all; training is then the same.
SOME_FAMILIES = ["data2vec", *exhaustive(*(name for name in FAMILIES if name != "data2vec"))]

# Linear layers of a transformer layer with their shapes, its LayerNorms, and where sub-layers end.
TRANSFORMER = (
    {f"attention.{one}_proj": (HIDDEN, HIDDEN) for one in ("q", "k", "v", "out")},
    {
        "feed_forward.intermediate_dense": (INNER, HIDDEN),
        "feed_forward.output_dense": (HIDDEN, INNER),
    },
    ("layer_norm", "final_layer_norm"),
    ("dropout", "feed_forward.output_dropout"),
)
CONFORMER = (
    {f"self_attn.linear_{one}": (HIDDEN, HIDDEN) for one in ("q", "k", "v", "out")},
    {
        "ffn1.intermediate_dense": (INNER, HIDDEN),
        "ffn1.output_dense": (HIDDEN, INNER),
        "ffn2.intermediate_dense": (INNER, HIDDEN),
        "ffn2.output_dense": (HIDDEN, INNER),
    },
    (
        "ffn1_layer_norm",
        "self_attn_layer_norm",
        "conv_module.layer_norm",
        "ffn2_layer_norm",
        "final_layer_norm",
    ),
    ("self_attn_dropout", "ffn1.output_dropout", "ffn2.output_dropout"),
)
LAYER = dict.fromkeys(FAMILIES, TRANSFORMER) | {"conformer": CONFORMER}


def of_a_layer(case, family):
    """The shapes of what a method that adds or picks trains in one layer, by name: from the papers."""
    config = CASES[case]
    attention, feed_forward, norms, ends = LAYER[family]
    linear = attention | feed_forward
    if config.method in ("lora", "dora"):
        shapes = {}
        for name, (outputs, inputs) in (linear if "attention" not in case else attention).items():
            shapes[f"{name}.lora_A.default.weight"] = (config.r, inputs)
            shapes[f"{name}.lora_B.default.weight"] = (outputs, config.r)
            if config.method == "dora":
                shapes[f"{name}.lora_magnitude_vector.default.weight"] = (outputs,)
        return shapes
    if config.method == "ia3":
        keys_and_values = [
            name for name in attention if name.endswith(("k", "v", "k_proj", "v_proj"))
        ]
        shapes = {f"{name}.ia3_l.default": (HIDDEN, 1) for name in keys_and_values}
        outputs = [name for name in feed_forward if name.endswith("output_dense")]
        return shapes | {f"{name}.ia3_l.default": (1, INNER) for name in outputs}
    if config.method == "bitfit":
        biases = {f"{name}.bias": (outputs,) for name, (outputs, _) in linear.items()}
        return biases | {f"{name}.bias": (HIDDEN,) for name in norms}
    if config.method == "layernorm":
        return {
            f"{name}.ln_tuning_layers.default.{one}": (HIDDEN,)
            for name in norms
            for one in ("weight", "bias")
        }
    if config.method == "adapter":
        shapes = {f"{name}.{one}": (HIDDEN,) for name in norms for one in ("weight", "bias")}
        for name in ends:
            shapes[f"{name}.down.weight"] = (config.adapter_size, HIDDEN)
            shapes[f"{name}.down.bias"] = (config.adapter_size,)
            shapes[f"{name}.up.weight"] = (HIDDEN, config.adapter_size)
            shapes[f"{name}.up.bias"] = (HIDDEN,)
        return shapes
    if config.method == "ssf":
        sizes = {name: outputs for name, (outputs, _) in linear.items()} | dict.fromkeys(
            norms, HIDDEN
        )
        return {
            f"{name}.{one}": (size,) for name, size in sizes.items() for one in ("scale", "shift")
        }
    raise NotImplementedError(case)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each architecture."""
    names = (*FAMILIES, "hubert, pre-norm")
    made = {name: tmp_path_factory.mktemp("checkpoint") for name in names}
    for name, folder in made.items():
        save_network(name, folder)
    return made


def build(folder, case, seed=0, **more):
    torch.manual_seed(seed)
    return TaskModel.build(
        task=TASK,
        backbone=BackboneConfig(source=str(folder), **more),
        head=HeadConfig(kind="mlp", hidden_size=8),
        tuning=case if isinstance(case, TuningConfig) else CASES[case],
        window_seconds=0.25,
    )


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (2, len(TASK.labels)), generator=generator).float()
    return 0.1 * torch.randn(2, 4000, generator=generator), targets


def train(model, optimizer, seeds):
    model.train()
    for seed in seeds:
        torch.manual_seed(seed)
        waveforms, targets = batch(seed)
        optimizer.zero_grad()
        TASK.loss(model(waveforms), targets).backward()
        optimizer.step()


def trained(folder, case, **more):
    model = build(folder, case, **more)
    train(model, fast(model), range(3))
    return model.eval()


def fast(model):
    return build_optimizer(model, OptimizerConfig(learning_rate=1e-2, backbone_learning_rate=1e-2))


def trainable_names(model):
    return {
        name.removeprefix("backbone.network."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.") and parameter.requires_grad
    }


@pytest.mark.parametrize(("alpha", "r"), [(1, 4), (8, 2)])
def test_lora_adds_its_product_times_alpha_by_r(alpha, r, folders):
    case = TuningConfig(method="lora", r=r, lora_alpha=alpha, lora_targets="attention")
    model = build(folders["hubert"], case).eval()
    linear = model.backbone.network.encoder.layers[0].attention.q_proj
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    assert (a.shape, b.shape) == ((r, HIDDEN), (HIDDEN, r))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        b.copy_(torch.randn(b.shape, generator=generator))
        x = torch.randn(5, HIDDEN, generator=generator)
        added = linear(x) - linear.base_layer(x)
        torch.testing.assert_close(added, x @ a.T @ b.T * alpha / r, atol=1e-5, rtol=1e-4)
    assert added.abs().max() > 0.1


def test_each_method_is_a_row_with_its_settings():
    assert tuple(METHODS) == tuple(TUNING_SETTINGS) == get_args(TuningMethod)
    settings = {name for names in TUNING_SETTINGS.values() for name in names}
    assert settings == set(TuningConfig.__dataclass_fields__) - {"method"}
    for method, row in METHODS.items():
        assert row.backbone_learning_rate > 0 or method == "probe"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("lora, attention", "LoRA, rank 3, alpha 4, dropout 0, on attention linear layers"),
        ("dora", "DoRA, rank 2, alpha 4, dropout 0, on all linear layers"),
        ("adapter", "bottleneck adapters of size 4, and the LayerNorms beside them"),
        ("top_layers", "fine-tuning of the last transformer layer"),
        ("full, conv encoder too", "full fine-tuning, convolutional encoder trained"),
    ],
)
def test_what_is_reported_of_a_method(case, expected):
    assert describe_tuning(CASES[case]) == expected


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_exactly_these_learn(case, architecture, folders):
    model = build(folders[architecture], case)
    own = {
        name: tuple(p.shape)
        for name, p in load_backbone(folders[architecture]).network.named_parameters()
    }
    method = CASES[case].method
    if method == "full":  # the positional convolutions of conformers are in no hidden state
        frozen = ("encoder.pos_conv_embed.",) if architecture == "conformer" else ()
        frozen += () if "conv" in case else ("feature_extractor.",)
        expected = {n: s for n, s in own.items() if not n.startswith(frozen)}
    elif method == "top_layers":
        top = [f"encoder.layers.{LAYERS - 1}."]
        top += ["encoder.layer_norm."] if architecture == "conformer" else []
        expected = {n: s for n, s in own.items() if n.startswith(tuple(top))}
    elif method == "probe":
        expected = {}
    else:
        expected = {
            f"encoder.layers.{i}.{name}": shape
            for i in range(LAYERS)
            for name, shape in of_a_layer(case, architecture).items()
        }
        if architecture == "conformer":  # a norm follows the last layer, as in pre-norm networks
            expected |= dict.fromkeys(OF_FINAL_NORM.get(method, ()), (HIDDEN,))
    expected = {n: s for n, s in expected.items() if n != "masked_spec_embed"}
    assert trainable_names(model) == expected
    counts = model.trained_parts()
    assert counts.pop("head") == (HIDDEN + 1) * 8 + 9 * 3
    assert counts.pop("layer weights") == LAYERS + 1
    assert sum(counts.values()) == sum(torch.Size(shape).numel() for shape in expected.values())
    if method not in ("probe", "full"):
        assert len(counts) == 1
        first = LAYERS if method == "top_layers" else 1
        assert f"transformer layers {first} to {LAYERS} of {LAYERS}" in counts


OF_FINAL_NORM = {
    "bitfit": {"encoder.layer_norm.bias"},
    "layernorm": {
        f"encoder.layer_norm.ln_tuning_layers.default.{one}" for one in ("weight", "bias")
    },
    "ssf": {"encoder.layer_norm.scale", "encoder.layer_norm.shift"},
}


@pytest.mark.parametrize("architecture", ["hubert, pre-norm", "conformer"])
@pytest.mark.parametrize(
    ("case", "names"),
    [
        *OF_FINAL_NORM.items(),
        ("top_layers", {"encoder.layer_norm.weight", "encoder.layer_norm.bias"}),
        ("adapter", set()),
        ("lora", set()),
    ],
)
def test_the_final_norm_belongs_to_the_layers(case, names, architecture, folders, tmp_path):
    model = trained(folders[architecture], case)
    assert {
        name for name in trainable_names(model) if not name.startswith("encoder.layers.")
    } == names
    model.save_pretrained(tmp_path, weights="all")
    with torch.no_grad():
        expected = model(batch(9)[0])
        torch.testing.assert_close(
            TaskModel.from_pretrained(tmp_path)(batch(9)[0]), expected, rtol=0, atol=1e-5
        )
    cut = build(folders[architecture], case, num_layers=2)  # its last state has no norm
    assert all(name.startswith("encoder.layers.") for name in trainable_names(cut))


@pytest.mark.parametrize(
    "architecture", ["data2vec", *exhaustive(*(name for name in FAMILIES if name != "data2vec"))]
)
@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_before_training(case, architecture, folders):
    plain = load_backbone(folders[architecture])
    tuned = build(folders[architecture], case).eval().backbone
    waveforms, _ = batch()
    # DoRA multiplies by norm / norm of its weights, which rounds.
    tolerance = 1e-6 if case == "dora" else 0
    with torch.no_grad():
        for ours, theirs in zip(tuned(waveforms), plain(waveforms), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", SOME_FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_training_changes_what_is_trainable_and_nothing_else(case, architecture, folders):
    model = build(folders[architecture], case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    train(model, fast(model), range(3))
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    # A bias of all keys adds the same to all scores of a query: softmax takes it out again.
    of_keys = {
        name
        for name in trainable
        if name.endswith(("k_proj.bias", "k_proj.shift", "linear_k.bias", "linear_k.shift"))
    }
    assert changed | of_keys == trainable
    assert any(name.startswith("backbone.") for name in changed) is (case != "probe")


@pytest.mark.parametrize("architecture", ["data2vec", *exhaustive("conformer")])
@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_predicts_the_same(case, architecture, folders, tmp_path):
    model = trained(folders[architecture], case)
    waveforms, _ = batch(9)
    with torch.no_grad():
        expected = model(waveforms)
        assert not torch.allclose(expected, build(folders[architecture], case).eval()(waveforms))
        for weights in ("trained", "all"):
            folder = tmp_path / weights
            model.save_pretrained(folder, weights=weights)
            loaded = TaskModel.from_pretrained(folder)
            assert loaded.tuning == model.tuning
            tolerance = 1e-5 if weights == "all" else 0
            torch.testing.assert_close(loaded(waveforms), expected, rtol=0, atol=tolerance)
            is_adapter = weights == "trained" and METHODS[model.tuning.method].adds != "nothing"
            model.backbone.source = "m-a-p/music2vec-v1"
            relation = model.card_data(weights=weights)["base_model_relation"]
            assert relation == ("adapter" if is_adapter else "finetune")
            assert is_adapter_enough(model) is (model.tuning.method != "full")
            model.backbone.source = str(folders[architecture])
        # What stands alone can be saved and loaded once more.
        loaded.save_pretrained(tmp_path / "again")
        again = TaskModel.from_pretrained(tmp_path / "again")
        assert torch.equal(again(waveforms), loaded(waveforms))
    names = loaded.backbone.network.state_dict().keys()
    plain = load_backbone(folders[architecture]).network.state_dict().keys()
    added = {name for name in names if ".down." in name or ".up." in name}
    assert names - added == plain
    assert bool(added) is (case == "adapter")


@pytest.mark.parametrize("architecture", ["data2vec", "conformer"])
@pytest.mark.parametrize("case", TRAINABLE)
def test_checkpointing_changes_no_gradient(case, architecture, folders):
    found = []
    for checkpointing in (False, True):
        model = build(folders[architecture], case).train()
        model.backbone.gradient_checkpointing = checkpointing
        torch.manual_seed(7)  # the same dropout masks
        TASK.loss(model(batch()[0]), batch()[1]).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    buffers = {name for name, _ in model.named_buffers()}  # saved too, without a gradient
    assert found[0].keys() == found[1].keys() == set(model.trained_tensors()) - buffers
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", TRAINABLE)
def test_a_resumed_run_resumes_as_if_never_stopped(case, folders, tmp_path):
    whole = build(folders["hubert"], case)
    train(whole, fast(whole), range(2))

    accelerator = Accelerator(cpu=True)
    first = build(folders["hubert"], case)
    optimizer = fast(first)
    train(first, optimizer, range(1))
    path = save_checkpoint(
        tmp_path,
        model=first,
        optimizer=optimizer,
        accelerator=accelerator,
        run=RunState(
            progress=Progress(step=1),
            best={},
            unlogged_losses=[],
            metrics_bytes=0,
            total_steps=2,
            seconds=1.5,
        ),
        keep=1,
    )
    second = build(folders["hubert"], case, seed=5)
    optimizer = fast(second)
    load_checkpoint(path, model=second, optimizer=optimizer, accelerator=accelerator)
    train(second, optimizer, range(1, 2))
    for name, value in whole.trained_tensors().items():
        assert torch.equal(second.trained_tensors()[name], value), name


@pytest.mark.parametrize("architecture", ["hubert", "conformer"])
@pytest.mark.parametrize("case", TRAINABLE)
def test_learning_rates_fall_with_depth(case, architecture, folders):
    model = build(folders[architecture], case)
    config = OptimizerConfig(learning_rate=1.0, backbone_learning_rate=1.0, layer_decay=0.5)
    learning_rates = {
        id(p): (group["peak_lr"], group["weight_decay"])
        for group in build_optimizer(model, config).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, decay = learning_rates.pop(id(parameter))
        parts = name.removeprefix("backbone.network.").split(".")
        in_layer = parts[:2] == ["encoder", "layers"]
        depth = LAYERS - 1 - int(parts[2]) if in_layer else LAYERS
        if architecture == "conformer" and parts[:2] == ["encoder", "layer_norm"]:
            depth = 0
        assert rate == (0.5**depth if name.startswith("backbone.") else 1.0), name
        # Vectors do not decay, of whatever shape PEFT makes them: scales would go from 1 to 0.
        if name.startswith("backbone."):
            assert (decay == 0.0) is (max(parameter.shape) == parameter.numel()), name
    assert not learning_rates


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_below_the_first_trainable_one_keep_nothing(checkpointing, folders):
    kept = {}
    for num_top_layers in (1, 2, 3):
        tuning = TuningConfig(method="top_layers", num_top_layers=num_top_layers)
        model = build(folders["data2vec"], tuning)
        model.backbone.gradient_checkpointing = checkpointing
        model.backbone.train()
        kept[num_top_layers] = 0

        def count(tensor, num=num_top_layers):
            kept[num] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            states = model.backbone(batch()[0])
        assert [state.requires_grad for state in states] == [
            i > LAYERS - num_top_layers for i in range(LAYERS + 1)
        ]
    if not checkpointing:
        # Each layer that learns costs the same, the first one no more than that, and the others nothing.
        assert kept[3] - kept[2] == kept[2] - kept[1]
        assert 0 < kept[1] <= kept[2] - kept[1]


@pytest.mark.parametrize(
    ("setting", "value", "users"),
    [
        ("r", 4, "lora or dora"),
        ("lora_targets", "attention", "lora or dora"),
        ("adapter_size", 8, "adapter"),
        ("num_top_layers", 2, "top_layers"),
        ("train_conv_encoder", True, "full"),
    ],
)
def test_settings_that_a_method_does_not_use_are_refused(setting, value, users):
    for method in get_args(TuningMethod):
        if method in users.split(" or "):
            assert TuningConfig(method=method, **{setting: value}).used()[setting] == value
            continue
        with raises("settings-conflict", f"tuning.{setting} is {value}", method, users):
            TuningConfig(method=method, **{setting: value})


def test_more_top_layers_than_there_are(folders):
    with raises("top-layers-out-of-range", "num_top_layers is 4", "has 3", "1 to 3"):
        build(folders["hubert"], TuningConfig(method="top_layers", num_top_layers=LAYERS + 1))


def test_default_learning_rates_are_those_of_their_sources(repository):
    """Head and backbone, as the page of methods lists them with where they come from."""
    learning_rates = {
        "probe": (1e-3, 0.0),
        "lora": (1e-4, 1e-4),
        "dora": (1e-4, 1e-4),
        "ia3": (1e-4, 3e-3),
        "bitfit": (1e-4, 1e-4),
        "layernorm": (1e-4, 3e-4),
        "adapter": (1e-4, 1e-4),
        "ssf": (1e-4, 1e-4),
        "top_layers": (1e-4, 1e-5),
        "full": (1e-4, 1e-5),
    }
    assert set(learning_rates) == set(METHODS)
    page = (repository / "docs" / "tuning.md").read_text(encoding="utf-8")
    table = page.partition("<!-- methods: begin -->")[2].partition("<!-- methods: end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    listed = {row[0].strip("`"): row for row in rows if row and row[0].startswith("`")}
    for method, (head, backbone) in learning_rates.items():
        known = METHODS[method]
        assert (known.learning_rate, known.backbone_learning_rate) == (head, backbone)
        assert [float(cell) for cell in listed[method][3:5]] == [backbone, head]
