"""The planned memory is that of real steps, counted the same way; and what a card would keep is kept."""

import runpy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from support.matrix import exhaustive
from support.messages import names, raises
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
)

from m2v_finetune.backbones import Backbone, build_architecture, load_backbone
from m2v_finetune.backbones.checkpoints import CHECKPOINTS
from m2v_finetune.config import (
    BackboneConfig,
    DataConfig,
    InitialBackboneConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PretrainingConfig,
    RecipeConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
    UnlabelledDataConfig,
)
from m2v_finetune.data.loader import Window
from m2v_finetune.memory import counted_step
from m2v_finetune.memory.changes import one_window_bytes
from m2v_finetune.memory.counted_step import CountedRun, Machine
from m2v_finetune.memory.counting import LimitExceededError, StorageRecorder
from m2v_finetune.memory.gpu import CUBLAS_WORKSPACE_BYTES, FLOAT32_FUNCTIONS, GpuKernels
from m2v_finetune.memory.plan import largest_split, plan_run, planned_training
from m2v_finetune.memory.run_memory import RunMemory, Split, fits, spare_bytes
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import parse_recipe, recipe_config
from m2v_finetune.pretraining.building import build_pretraining_model
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.distillation import teacher_loss
from m2v_finetune.training.moving_average import MovingAverage
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.sizes import gigabytes
from m2v_finetune.training.step import take_step

CPU = Machine(on_gpu=False, precision="no")
GPU = Machine(on_gpu=True, precision="fp16")
TASK = Tagging.from_settings(TaggingConfig())


def settings(method="full", *, checkpointing=True, batch=4, accumulation=1, seconds=1.0, layers=2):
    return RecipeConfig(
        data=DataConfig(source="none", window_seconds=seconds),
        backbone=BackboneConfig(source="random-small", num_layers=layers),
        tuning=TuningConfig(method=method),
        training=TrainingConfig(
            per_device_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=checkpointing,
        ),
    )


def pretraining_settings(source, *, averages="layers", checkpointing=True, accumulation=1):
    is_masked_prediction = averages == "masked_prediction"
    return PretrainingConfig(
        objective="masked_prediction" if is_masked_prediction else "data2vec",
        data=UnlabelledDataConfig(source="none", window_seconds=1.0),
        backbone=InitialBackboneConfig(source=str(source)),
        pretrain=ObjectiveConfig()
        if is_masked_prediction
        else ObjectiveConfig(num_target_layers=2, teacher_averages=averages),
        training=TrainingConfig(
            per_device_batch_size=4,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=checkpointing,
        ),
    )


def real_model(config, task):
    if task is None:
        backbone = load_backbone(config.backbone.source, spec_augment=True)
        return build_pretraining_model(backbone, config)
    return TaskModel.build(
        task=task,
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
    )


def real_batches(config, model):
    size = config.training.per_device_batch_size
    window = Window(
        start_sample=0, num_samples=model.window_samples, grid=model.backbone.frame_grid
    )
    for _ in range(config.training.gradient_accumulation_steps):
        if isinstance(model, PretrainingModel):
            yield [
                (torch.rand(size, *shape) < 0.5).to(dtype)
                if dtype != torch.float32
                else torch.rand(size, *shape)
                for shape, dtype in model.batch_shapes()
            ]
        else:
            yield [torch.rand(size, *shape) for shape in model.task.example_shapes(window)]


def room(peak):
    """Return the least memory of a card in which a planned peak fits."""
    return peak + spare_bytes(peak, GPU)


def real_peak_bytes(config, task, *, autocast=nullcontext):
    """Count the peak of a second optimizer step on real tensors."""
    model = real_model(config, task).train()
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    optimizer = build_optimizer(model, config.optimizer)
    batches = list(real_batches(config, model))

    def step():
        if task is None:
            model.start_step(1)
        take_step(
            model,
            optimizer,
            batches,
            loss=(model if task is None else task).loss,
            gradient_accumulation_steps=len(batches),
            max_grad_norm=1.0,
            autocast=autocast,
        )
        if task is None:
            model.end_step(0)

    step()
    with StorageRecorder() as recorder:
        note_all(recorder, model, optimizer, batches[0])
        step()
    return sum(recorder.timeline().peak().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "machine"),
    [
        ("full", CPU),
        ("pretraining", GPU),
        *exhaustive(
            ("full", GPU),
            ("dora", CPU),
            ("dora", GPU),
            ("ssf", CPU),
            ("ssf", GPU),
            ("pretraining", CPU),
        ),
    ],
)
def test_quick_fake_tensors_count_what_those_of_torch_count(machine, method, monkeypatch):
    task = None if method == "pretraining" else TASK
    config = settings(method) if task else pretraining_settings("random-small")

    def count():
        run = CountedRun(config, task, machine)
        return [run.step(3), run.evaluation(5)]

    found = count()
    monkeypatch.setattr(
        counted_step, "QuickFakeTensorMode", lambda: FakeTensorMode(allow_non_fake_inputs=True)
    )
    for one, expected in zip(found, count(), strict=True):
        for name in ("starts", "ends", "sizes", "parts"):
            np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))


def test_the_plan_counts_an_average_and_a_teacher(tmp_path):
    """Both live beside the model; the teacher reads each batch after the student."""
    plain = settings("full")
    teacher = real_model(settings("probe", layers=4), TASK).eval().requires_grad_(False)
    teacher.save_pretrained(tmp_path / "teacher")
    training = replace(plain.training, ema_decay=0.9, teacher=str(tmp_path / "teacher"))
    config = replace(plain, training=training)
    planned = RunMemory(config, TASK, CPU)

    model = real_model(config, TASK).train()
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    optimizer = build_optimizer(model, config.optimizer)
    waveforms = torch.rand(4, model.window_samples)
    average = MovingAverage(model, 0.9)
    loss = teacher_loss(teacher, temperature=1.0, autocast=nullcontext)

    def step():
        take_step(model, optimizer, [[waveforms, waveforms.clone()]], loss=loss, max_grad_norm=1.0)
        average.update(1)

    step()
    with StorageRecorder() as recorder:
        note_all(recorder, model, optimizer, [waveforms, *average.values.values()])
        note_all(recorder, teacher, optimizer, [])
        step()
    real = sum(recorder.timeline().peak().values())
    found = planned.peak_bytes(Split(batch_size=4, accumulation=1))
    assert found == pytest.approx(real, rel=0.03)
    trained = sum(one.nbytes for one in average.values.values())
    taught = sum(one.nbytes for one in (*teacher.parameters(), *teacher.buffers()))
    without = RunMemory(plain, TASK, CPU).peak_bytes(Split(batch_size=4, accumulation=1))
    targets = waveforms.nbytes - 4 * 4 * TASK.num_outputs  # waveforms in place of labels
    assert found - without == trained + taught + targets
    grown = sum(planned.evaluation_peak(4).values())
    less = sum(RunMemory(plain, TASK, CPU).evaluation_peak(4).values())
    assert grown - less == trained + taught


def note_all(recorder, model, optimizer, batch):
    for tensor in (*model.parameters(), *model.buffers(), *batch):
        recorder.note(tensor)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                recorder.note(value)


def real_evaluation_bytes(config, task):
    """Count the peak of evaluating a batch after an optimizer step, on real tensors."""
    model = real_model(config, task).train()
    optimizer = build_optimizer(model, config.optimizer)
    [batch] = real_batches(config, model)
    if task is None:
        model.start_step(1)
    loss = (model if task is None else task).loss
    take_step(model, optimizer, [batch], loss=loss, max_grad_norm=1.0)
    model.eval()
    with StorageRecorder() as recorder, torch.no_grad():
        note_all(recorder, model, optimizer, batch)
        outputs = model(*batch[:-1])
        if task is None:
            model.window_metrics(outputs, batch[-1])
    return sum(recorder.timeline().peak().values())


@pytest.mark.parametrize(
    ("method", "checkpointing", "accumulation"),
    [
        ("lora", False, 1),
        ("full", True, 2),
        *exhaustive(("probe", True, 1), ("lora", True, 2), ("full", True, 1), ("full", False, 2)),
    ],
)
def test_the_plan_is_what_a_real_step_allocates(method, checkpointing, accumulation):
    config = settings(method, checkpointing=checkpointing, accumulation=accumulation)
    assert_planned(config, TASK)


@pytest.mark.parametrize(
    "task",
    [
        *exhaustive(
            Tagging(labels=tuple("abc"), label_column="tags", pos_weights=(1.0, 2.0, 3.0)),
            Tagging(labels=tuple("abc"), label_column="tags", focal_gamma=2.0),
        ),
        Genre(
            labels=tuple("abc"),
            label_column="genre",
            class_weights=(1.0, 2.0, 3.0),
            label_smoothing=0.1,
        ),
    ],
    ids=["weighted tags", "focal", "weighted classes"],
)
def test_the_plan_holds_for_losses_against_imbalance(task):
    assert_planned(settings("probe"), task)


@pytest.mark.slow
def test_the_plan_holds_in_bfloat16():
    config = settings("full", accumulation=2)
    machine = Machine(on_gpu=False, precision="bf16")
    planned = RunMemory(config, TASK, machine).peak_bytes(Split(batch_size=4, accumulation=2))
    real = real_peak_bytes(config, TASK, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert planned == pytest.approx(real, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("full", "adafactor"), *exhaustive(("probe", "adamw"), ("full", "adamw"))],
)
def test_the_plan_of_evaluation_is_what_evaluation_allocates(method, optimizer):
    config = replace(settings(method), optimizer=OptimizerConfig(name=optimizer))
    memory = RunMemory(config, TASK, CPU)
    planned = sum(memory.evaluation_peak(4).values())
    assert planned == pytest.approx(real_evaluation_bytes(config, TASK), rel=0.03)
    # As many windows can be judged as a step can be taken of.
    for size in (1, 4):
        step = memory.peak_bytes(Split(batch_size=size, accumulation=1))
        assert sum(memory.evaluation_peak(size).values()) <= step


@pytest.mark.parametrize("averages", ["masked_prediction", *exhaustive("layers")])
def test_the_plan_of_evaluation_holds_for_pretraining(networks, averages):
    config = pretraining_settings(networks / "layer", averages=averages)
    planned = sum(RunMemory(config, None, CPU).evaluation_peak(4).values())
    assert planned == pytest.approx(real_evaluation_bytes(config, None), rel=0.03)


def test_a_gpu_holds_workspace_and_whole_blocks():
    assert CUBLAS_WORKSPACE_BYTES == 8_519_680
    config, split = settings("probe"), Split(batch_size=2, accumulation=1)
    memory, run = RunMemory(config, TASK, GPU), CountedRun(config, TASK, GPU)
    for planned, counted in (
        (memory.peak(split), run.step(2)),
        (memory.evaluation_peak(2), run.evaluation(2)),
    ):
        beyond = planned["workspace"] - counted.peak()["workspace"]
        assert beyond == CUBLAS_WORKSPACE_BYTES
        assert not (counted.sizes % 512).any()
    with StorageRecorder() as recorder:
        kept = [torch.zeros(size, dtype=torch.uint8) for size in (1, 512, 513)]
    assert recorder.timeline(block_bytes=512).sizes.tolist() == [512, 512, 1024]
    assert recorder.timeline().sizes.tolist() == [len(one) for one in kept]


@pytest.mark.exhaustive
def test_what_does_not_fit_is_counted_no_further():
    config, split = settings("lora"), Split(batch_size=4, accumulation=1)
    run, memory = CountedRun(config, TASK, GPU), RunMemory(config, TASK, GPU)
    whole, evaluated = run.step(4), run.evaluation(4)
    with pytest.raises(LimitExceededError):
        run.step(4, limit_bytes=sum(whole.peak().values()) // 2)
    with pytest.raises(LimitExceededError):
        run.evaluation(4, limit_bytes=1)
    # What was broken off, or came before, changes no later count.
    assert run.step(4).peak() == whole.peak()
    assert run.evaluation(4).peak() == evaluated.peak()
    peak, evaluation = memory.peak_bytes(split), sum(memory.evaluation_peak(4).values())
    for known in (memory, RunMemory(config, TASK, GPU)):
        assert known.step_fits(split, room(peak))
        assert not known.step_fits(split, room(peak) - 1)
    assert memory.evaluation_fits(4, room(evaluation))
    assert not memory.evaluation_fits(4, room(evaluation) - 1)


@pytest.mark.parametrize(
    ("peak", "spare"), [(10**9, 500_000_000), (5 * 10**9, 500_000_000), (10**10, 10**9)]
)
def test_what_has_to_be_free_beside_a_peak(peak, spare):
    assert spare_bytes(peak, GPU) == spare
    assert spare_bytes(peak, CPU) == peak // 10
    assert fits(peak, peak + spare, GPU)
    assert not fits(peak, peak + spare - 1, GPU)


@pytest.mark.slow
def test_shorter_windows_have_closer_hops():
    config = settings("probe", seconds=2.0)
    config = replace(config, data=replace(config.data, hop_seconds=1.5))
    found = [change.setting for change in plan_run(config, TASK, GPU, memory_bytes=1).changes]
    assert "--data.window_seconds 1 --data.hop_seconds 0.75" in found


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_what_does_not_run_is_not_planned(name):
    config = replace(settings(), optimizer=OptimizerConfig(name=name))
    config = replace(config, run=RunConfig(memory="1GB"))
    for plan in (
        lambda: plan_run(config, TASK, CPU),
        lambda: planned_training(config, TASK, Accelerator(cpu=True)),
    ):
        with raises("optimizer-needs-gpu", name):
            plan()


def assert_planned(config, task):
    training = config.training
    split = Split(
        batch_size=training.per_device_batch_size,
        accumulation=training.gradient_accumulation_steps,
    )
    planned = RunMemory(config, task, CPU).peak_bytes(split)
    assert planned == pytest.approx(real_peak_bytes(config, task), rel=0.03)


# As MERT's base models, as music2vec's conv encoder, as the pre-norm 330M, and other layers.
NETWORKS = {
    "group": (HubertConfig, HubertModel, {"feat_extract_norm": "group"}),
    "layer": (HubertConfig, HubertModel, {"feat_extract_norm": "layer", "conv_bias": True}),
    "pre-norm": (
        HubertConfig,
        HubertModel,
        {"feat_extract_norm": "group", "do_stable_layer_norm": True},
    ),
    "conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, {"max_source_positions": 100}),
    "conformer without positions": (
        Wav2Vec2ConformerConfig,
        Wav2Vec2ConformerModel,
        {"position_embeddings_type": None},
    ),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    for name, (config_class, network_class, special) in NETWORKS.items():
        config = config_class(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            conv_dim=(32,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            mask_time_prob=0.5,  # so that they can be pre-trained
            **special,
        )
        backbone = Backbone(
            network_class(config),
            source="",
            revision=None,
            licence="",
            sample_rate=16000,
            normalize=True,
            spec_augment=True,
        )
        backbone.save_pretrained(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "task", "method", "optimizer"),
    [
        ("group", "beats", "probe", "adamw"),
        ("layer", "transcription", "full", "adamw"),
        ("conformer", "beats", "probe", "adamw"),
        *exhaustive(
            ("pre-norm", "key", "full", "adafactor"),
            ("group", "beats", "lora", "adafactor"),
            ("layer", "transcription", "probe", "adafactor"),
            ("pre-norm", "key", "lora", "adamw"),
            ("conformer", "key", "lora", "adamw"),
        ),
    ],
)
def test_the_plan_holds_for_other_networks_heads_and_optimizers(
    architecture, task, method, optimizer, networks
):
    config = settings(method, accumulation=2)
    config = replace(
        config,
        backbone=BackboneConfig(source=str(networks / architecture)),
        optimizer=OptimizerConfig(name=optimizer),
    )
    assert_planned(config, TASKS[task].from_settings(TASKS[task].settings_class()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "averages", "checkpointing", "accumulation"),
    [
        ("pre-norm", "layers", False, 2),
        ("group", "masked_prediction", True, 2),
        *exhaustive(
            ("group", "all", True, 1),
            ("layer", "layers", True, 2),
            ("layer", "all", False, 1),
            ("conformer", "layers", True, 1),
            ("layer", "masked_prediction", False, 1),
        ),
    ],
)
def test_the_plan_holds_for_pretraining(
    architecture, averages, checkpointing, accumulation, networks
):
    config = pretraining_settings(
        networks / architecture,
        averages=averages,
        checkpointing=checkpointing,
        accumulation=accumulation,
    )
    assert_planned(config, None)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["lora", *exhaustive("full")])
def test_the_plan_of_a_gpu_counts_the_position_bias_of_conformers(method, networks):
    """Attention with a bias makes a matrix (heads, frames, frames) for each window and layer."""
    peaks = []
    for name in ("conformer", "conformer without positions"):
        config = settings(method, checkpointing=False, layers=None)
        config = replace(config, backbone=replace(config.backbone, source=str(networks / name)))
        memory = RunMemory(config, TASK, GPU)
        batches = [Split(batch_size=size, accumulation=1) for size in (2, 3)]
        two, three = map(memory.peak_bytes, batches)
        peaks.append(three - two)  # what one more window takes
    matrix_bytes = 2 * 4 * 49 * 49  # in float16
    assert peaks[0] - peaks[1] >= 2 * matrix_bytes


@pytest.mark.exhaustive
def test_what_takes_less_in_pretraining(networks):
    config = pretraining_settings(networks / "layer", checkpointing=False)
    plan = plan_run(config, None, GPU, memory_bytes=1)
    assert [change.setting for change in plan.changes] == [
        "--training.gradient_checkpointing true",
        "--pretrain.train_conv_encoder false",
        "--data.window_seconds 0.5",
        "--optimizer.name adafactor",
        "--optimizer.name adamw_8bit",
    ]
    with raises("memory-too-small", "--optimizer.name adafactor"):
        plan.applied(config.training)


def test_the_parts_are_what_they_state():
    peak = RunMemory(settings("full"), TASK, GPU).peak(Split(batch_size=4, accumulation=2))
    model = TaskModel.build(
        task=TASK,
        backbone=settings().backbone,
        head=settings().head,
        tuning=settings().tuning,
        window_seconds=1.0,
    )
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    # Blocks of 512 bytes make small tensors larger.
    assert peak["weights"] == pytest.approx(
        sum(4 * p.numel() for p in model.parameters()), rel=0.03
    )
    assert peak["gradients"] == pytest.approx(trained, rel=0.03)
    assert peak["optimizer"] == pytest.approx(2 * trained, rel=0.08)
    assert min(peak.values()) > 0


@pytest.mark.parametrize("name", [name for name, known in CHECKPOINTS.items() if known.hub_id])
def test_published_architectures_are_known_without_their_files(name):
    with torch.device("meta"):
        backbone = build_architecture(name)
    known = CHECKPOINTS[name]
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert round(count / 1e6, 1) == known.parameters_millions
    assert backbone.num_layers == known.num_layers
    assert (backbone.hidden_size, backbone.sample_rate) == (known.hidden_size, known.sample_rate)
    assert backbone.frame_rate == known.frame_rate


class Saved:
    """Notes what autograd keeps."""

    def __enter__(self):
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def note(self, tensor):
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_a_gpu_keeps_no_square_of_attention_and_a_byte_a_number_of_dropout():
    with FakeTensorMode():
        state = torch.empty(2, 4, 500, 64, requires_grad=True)
        kept = {}
        for name, function in {
            "attention": lambda: F.scaled_dot_product_attention(state, state, state, dropout_p=0.1),
            "dropout": lambda: F.dropout(state, 0.1),
        }.items():
            with Saved() as on_cpu:
                function()
            with GpuKernels(), Saved() as on_gpu:
                function()
            kept[name] = on_cpu.bytes, on_gpu.bytes
    square, numbers = 2 * 4 * 500 * 500, 2 * 4 * 500 * 64
    assert kept["attention"][0] > 4 * square > kept["attention"][1] >= 4 * 4 * numbers
    assert kept["dropout"] == (4 * numbers, numbers)


def test_a_gpu_computes_norms_in_float32_under_autocast():
    on_cuda = {
        name.removeprefix("aten::").partition(".")[0].removeprefix("linalg_")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    }
    assert on_cuda >= FLOAT32_FUNCTIONS
    half = torch.ones(2, 3, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        assert F.layer_norm(half, (3,)).dtype == torch.float16
        with GpuKernels():
            assert F.layer_norm(half, (3,)).dtype == torch.float32


@pytest.mark.slow
def test_the_largest_batch_that_fits_and_keeps_the_total():
    config = settings(batch=3, accumulation=4, layers=1)
    config = replace(config, training=replace(config.training, eval_batch_size=512))
    memory = RunMemory(config, TASK, GPU)
    splits = {n: memory.peak_bytes(Split(batch_size=n, accumulation=12 // n)) for n in (6, 4, 3)}
    assert splits[6] > splits[4] > splits[3]
    # Room for batches of 4, a tenth to spare, and for no more.
    plan = plan_run(config, TASK, GPU, memory_bytes=room(splits[4]))
    assert plan.chosen == Split(batch_size=4, accumulation=3)
    assert plan.peak_bytes == splits[4]
    eval_size = plan.eval_batch_size
    assert 1 <= eval_size < config.training.eval_batch_size
    for size, is_in in ((eval_size, True), (2 * eval_size, False)):
        evaluation = sum(memory.evaluation_peak(size).values())
        assert fits(evaluation, room(splits[4]), GPU) is is_in
    training = plan.applied(config.training)
    assert (training.per_device_batch_size, training.gradient_accumulation_steps) == (4, 3)
    assert training.eval_batch_size == plan.eval_batch_size


@pytest.mark.exhaustive
def test_no_larger_batch_would_fit():
    """Where the peak does not grow in a line: at small batches it is the optimizer's step."""
    memory = RunMemory(settings(), TASK, GPU)
    splits = [Split(batch_size=n, accumulation=32 // n) for n in (32, 16, 8, 4, 2, 1)]
    peaks = [memory.peak_bytes(split) for split in splits]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-2] - peaks[-1] < (peaks[0] - peaks[1]) / 16
    for configured in (splits[0], splits[-1]):
        for split, peak in zip(splits, peaks, strict=True):
            assert largest_split(memory, splits, configured, memory_bytes=room(peak)) == split


@pytest.mark.slow
def test_a_gpu_is_planned_as_a_gpu():
    config, split = settings(checkpointing=False), Split(batch_size=4, accumulation=1)
    on_cpu, on_gpu, in_half = (
        RunMemory(config, TASK, machine).peak(split)["activations"]
        for machine in (CPU, Machine(on_gpu=True, precision="no"), GPU)
    )
    assert on_cpu > 1.1 * on_gpu > 1.1 * in_half


@pytest.mark.exhaustive
def test_only_what_runs_on_the_machine_is_advised():
    config = settings("lora", batch=1, layers=1)
    found = {
        machine.on_gpu: {c.setting for c in plan_run(config, TASK, machine, memory_bytes=1).changes}
        for machine in (CPU, GPU)
    }
    assert found[True] - found[False] == {"--optimizer.name adamw_8bit"}


@pytest.mark.exhaustive
def test_what_to_switch_on_where_nothing_fits():
    config = settings(checkpointing=False, batch=2)
    smallest = RunMemory(config, TASK, GPU).peak_bytes(Split(batch_size=1, accumulation=2))
    plan = plan_run(config, TASK, GPU, memory_bytes=smallest)
    assert plan.chosen is None
    found = {change.setting: change for change in plan.changes}
    assert {
        "--training.gradient_checkpointing true",
        "--backbone.num_layers 1",
        "--data.window_seconds 0.5",
        "--tuning.method lora",
    } <= set(found)
    for change in found.values():
        assert change.peak_bytes + change.saved_bytes == smallest
    shorter = replace(config, data=replace(config.data, window_seconds=0.5))
    expected = RunMemory(shorter, TASK, GPU).peak_bytes(Split(batch_size=1, accumulation=2))
    assert found["--data.window_seconds 0.5"].peak_bytes == expected
    with raises("memory-too-small", "--tuning.method lora"):
        plan.applied(config.training)
    assert plan_run(config, TASK, GPU).changes == ()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "words",
    [
        "--tuning.method adapter --training.gradient_checkpointing false --backbone.num_layers 2",
        *exhaustive(
            "--tuning.method probe --data.window_seconds 0.03 --backbone.num_layers 1",
            "--tuning.method full --tuning.train_conv_encoder true --backbone.num_layers 2",
            "--tuning.method top_layers --tuning.num_top_layers 2 --backbone.num_layers 2",
            "--tuning.method lora --tuning.r 16 --data.hop_seconds 0.25 --backbone.num_layers 2",
        ),
    ],
)
def test_what_is_advised_can_be_followed(words, monkeypatch):
    counted = []

    def count(config, task, machine):
        peak = one_window_bytes(config, task, machine)
        counted.append((config, peak))
        return peak

    monkeypatch.setattr("m2v_finetune.memory.changes.one_window_bytes", count)
    given = ["--data.source", "none", "--data.window_seconds", "0.5", "--backbone.source"]
    given += ["random-small", "--training.per_device_batch_size", "2", *words.split()]

    config_class = recipe_config(Tagging)

    def parsed(*more):
        return parse_recipe(config_class, [*given, *more], description="", quickstart=None)

    config = parsed()
    plan = plan_run(config, TASK, GPU, memory_bytes=1)
    # The settings that were counted are those that the words give.
    for change in filter(None, (*plan.changes, plan.combined)):
        assert (parsed(*change.setting.split()), change.peak_bytes) in counted
    advised = " ".join(change.setting for change in plan.changes)
    assert ("--tuning.method lora" in advised) == ("full" in words or "top_layers" in words)
    assert ("--tuning.num_top_layers 1" in advised) == ("top_layers" in words)
    # Windows that are too short for the network, and layers that are too few for the method, are no advice.
    assert ("--data.window_seconds" in advised) == ("0.03" not in words)
    assert ("--backbone.num_layers" in advised) == (
        "top_layers" not in words and "probe" not in words
    )


@pytest.mark.slow
def test_what_evaluation_takes_is_reported_where_it_is_more_than_a_step():
    config = settings("probe", batch=2)
    memory = RunMemory(config, TASK, GPU)
    for size, expected in ((2, None), (16, memory.evaluation_peak(16))):
        planned = replace(config, training=replace(config.training, eval_batch_size=size))
        plan = plan_run(planned, TASK, GPU, memory_bytes=2 * 10**9)
        assert plan.eval_peak == expected == plan_run(planned, TASK, GPU).eval_peak
        assert ("evaluation" in plan.summary()) == (expected is not None)


@pytest.mark.exhaustive
def test_all_changes_together_are_counted_once():
    config = settings(checkpointing=False, batch=2)
    split = Split(batch_size=1, accumulation=2)
    plan = plan_run(config, TASK, GPU, memory_bytes=1)
    assert plan.combined is not None
    changed = RecipeConfig(
        data=DataConfig(source="none", window_seconds=0.5),
        backbone=BackboneConfig(source="random-small", num_layers=1),
        tuning=TuningConfig(method="lora"),
        optimizer=OptimizerConfig(name="adafactor"),
        training=replace(config.training, gradient_checkpointing=True),
    )
    peak = RunMemory(changed, TASK, GPU).peak_bytes(split)
    assert plan.combined.peak_bytes == peak < min(one.peak_bytes for one in plan.changes)
    assert plan.combined.setting.split()[::2] == [
        "--training.gradient_checkpointing",
        "--backbone.num_layers",
        "--data.window_seconds",
        "--optimizer.name",
        "--tuning.method",
    ]
    assert f"they take {gigabytes(peak)}. Use a GPU" in plan.refusal()
    enough = replace(plan, memory_bytes=room(peak)).refusal()
    assert names(enough, gigabytes(peak), plan.combined.setting)
    some = max(one.peak_bytes for one in plan.changes)
    assert plan_run(config, TASK, GPU, memory_bytes=room(some)).combined is None


@pytest.mark.slow
def test_what_an_optimizer_keeps():
    kept = {}
    for name in ("adamw", "adafactor", "adamw_8bit", "paged_adamw_8bit"):
        config = replace(settings(), optimizer=OptimizerConfig(name=name))
        kept[name] = RunMemory(config, TASK, GPU).peak(Split(batch_size=1, accumulation=1))[
            "optimizer"
        ]
    assert kept["adamw"] > 3 * kept["adamw_8bit"] > 6 * kept["adafactor"]
    assert kept["paged_adamw_8bit"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("is_task", [True, *exhaustive(False)])
def test_the_steps_that_a_gpu_would_measure_run(is_task, networks, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    script = runpy.run_path(str(repository / "benchmarks" / "verify_memory.py"), run_name="steps")
    config = settings("lora") if is_task else pretraining_settings(networks / "layer")
    split = Split(batch_size=2, accumulation=3)
    with StorageRecorder() as recorder:
        script["take_steps"](config, TASK if is_task else None, "bf16", split, device="cpu")
    # As planned, but for what lives on from the step before.
    machine = Machine(on_gpu=False, precision="bf16")
    planned = RunMemory(config, TASK if is_task else None, machine).peak_bytes(split)
    assert sum(recorder.timeline().peak().values()) == pytest.approx(planned, rel=0.1)


def test_every_task_states_the_shapes_of_its_examples():
    model = TaskModel.build(
        task=TASK,
        backbone=settings().backbone,
        head=settings().head,
        tuning=settings().tuning,
        window_seconds=1.0,
    )
    window = Window(start_sample=0, num_samples=16000, grid=model.backbone.frame_grid)
    for name, task_class in TASKS.items():
        task = task_class.from_settings(TASKS[name].settings_class())
        *inputs, targets = (torch.zeros(2, *shape) for shape in task.example_shapes(window))
        head = task.build_head(settings().head, hidden_size=8, grid=model.backbone.frame_grid)
        features = torch.zeros(2, model.backbone.num_frames(16000), 8)
        loss = task.loss(head(features, *inputs[1:]), targets)
        assert inputs[0].shape == (2, 16000)
        assert loss.shape == ()
        assert loss.isfinite()
