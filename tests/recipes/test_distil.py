"""Distillation: the loss by hand, and students of small teachers, some of whose tracks have no labels."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from support.matrix import exhaustive
from support.messages import raises
from support.runs import read_metrics, reset_accelerate

from m2v_finetune.cli import main
from m2v_finetune.cli.distil import read_student
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.errors import Stopped
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.distillation import distillation_loss

TAGGING = Tagging(labels=("piano", "drums", "minor"), label_column="tags")
"""In an order of its own: that of sorted training labels would be another."""
NUM_CLIPS = {"train": 4, "validation": 2, "test": 2}


REPOSITORY = Path(__file__).parents[2]


def test_losses_are_those_of_the_field():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3)
    genre = Genre(labels=("a", "b", "c"), label_column="genre")
    # Cross-entropy with soft targets, less their entropy, by torch's own function.
    soft = (teacher / 3).softmax(dim=-1)
    entropy = -(soft * soft.log()).sum(dim=-1).mean()
    expected = 9 * (F.cross_entropy(student / 3, soft) - entropy)
    found = distillation_loss(genre, student, teacher, temperature=3)
    torch.testing.assert_close(found, expected)
    assert distillation_loss(genre, teacher, teacher, temperature=3).abs() < 1e-6
    torch.testing.assert_close(
        distillation_loss(TAGGING, student, teacher, temperature=3),
        F.binary_cross_entropy_with_logits(student, teacher.sigmoid()),
    )
    numbers = Emotion(labels=("a", "b", "c"), means=(0.0,) * 3, stds=(1.0,) * 3)
    torch.testing.assert_close(
        distillation_loss(numbers, student, teacher, temperature=3),
        ((student - teacher) ** 2).mean(),
    )
    # Frames: a boundary has a probability of its own, and labels are a distribution.
    structure = TASKS["structure"](labels=("a", "b"), label_column="sections")
    student, teacher = torch.randn(2, 4, 7, 3)
    expected = F.binary_cross_entropy_with_logits(
        student[..., 0], teacher[..., 0].sigmoid()
    ) + F.kl_div(
        student[..., 1:].log_softmax(-1).flatten(0, 1),
        teacher[..., 1:].softmax(-1).flatten(0, 1),
        reduction="batchmean",
    )
    torch.testing.assert_close(
        distillation_loss(structure, student, teacher, temperature=1), expected
    )
    separation = TASKS["separation"].from_settings(TASKS["separation"].settings_class())
    with raises("teacher-unsupported-task", "separation"):
        distillation_loss(separation, student, teacher, temperature=1)


def save_teacher(folder: Path, task=TAGGING, *, scale: float = 20.0) -> Path:
    """Save a model with random weights whose outputs vary."""
    torch.manual_seed(1)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=1.0,
    )
    with torch.no_grad():
        for weight in model.head.parameters():
            weight *= scale
    model.save_pretrained(folder)
    return folder


def write_clips(folder: Path, column: str) -> Path:
    """Write a manifest of a few clips; those for training have no labels."""
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = []
    for split, count in NUM_CLIPS.items():
        for row in [row for row in rows if row["split"] == split][:count]:
            clip = {"id": row["id"], "split": split, "path": str(QUICKSTART_DIR / row["path"])}
            if split != "train":
                of_clip = row[column]
                is_tags = column == "tags"
                clip[column] = (
                    [tag for tag in of_clip if tag in TAGGING.labels]
                    if is_tags
                    else str(QUICKSTART_DIR / of_clip)
                )
            chosen.append(clip)
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return path


OF_TEACHER = ("--backbone.source=random-small", "--data.window_seconds=1")


def words(source: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("--data.source", str(source), "--data.num_workers", "0"),
        *("--data.windows_per_track", "2", "--backbone.num_layers", "1"),
        *("--tuning.method", "full", "--training.epochs", "2", "--training.log_every_steps", "1"),
        *("--training.per_device_batch_size", "4", "--run.checkpoint_every_steps", "1"),
        *("--optimizer.learning_rate", "0.01", "--run.output_dir", str(folder), *more),
    ]


def test_the_plan_of_a_student_counts_its_teacher(tmp_path, capsys):
    teacher = save_teacher(tmp_path / "teacher")
    config = str(REPOSITORY / "configs" / "tagging" / "quickstart.yaml")
    common = ["plan", "--config", config, "--device", "cpu", "--data.window_seconds", "1"]

    def plan(*more):
        with pytest.raises(SystemExit) as ended:
            main([*common, "--backbone.source", "random-small", *more])
        assert not ended.value.code
        return capsys.readouterr().out

    alone, taught = plan(), plan("--training.teacher", str(teacher))
    assert "assumed" in alone
    assert "assumed" not in taught
    assert megabytes(alone, "weights") < 0.6 * megabytes(taught, "weights")


def megabytes(shown: str, part: str) -> float:
    """Return the number of a part in the table of `m2v plan`."""
    [size] = re.findall(rf"^\W*{part}\W+([\d.]+) MB", shown, re.MULTILINE)
    return float(size)


@pytest.mark.slow
def test_a_student_learns_without_labels_and_resumes_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = save_teacher(tmp_path / "teacher")
    source = write_clips(tmp_path, "tags")
    reset_accelerate()
    main_words = ["distil", str(teacher), *words(source, tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(main_words)
    assert ended.value.code == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]
    student = TaskModel.from_pretrained(tmp_path / "run" / "model")
    assert student.task.labels == TAGGING.labels
    assert (student.backbone.source, student.backbone.num_layers) == ("random-small", 1)
    assert student.window_seconds == 1.0
    assert set(student.predict(QUICKSTART_DIR / "audio" / "test-000.ogg").scores) == {
        *TAGGING.labels
    }
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "outputs of" in card
    assert "license: apache-2.0" in card  # that of teacher and backbone
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["training"]["teacher"] == str(teacher)

    # Stopped after the first epoch, and resumed.
    stopped = words(source, tmp_path / "again", f"--training.teacher={teacher}", *OF_TEACHER)

    def stop(epoch, values):
        raise Stopped(15, "")

    def train(*more: str, **options) -> None:
        reset_accelerate()
        config = read_config("tagging", [*stopped, *more])
        train_task(config, TASKS["tagging"], is_search=True, **options)

    with pytest.raises(Stopped):
        train(on_epoch=stop)
    train("--run.resume=auto")
    lines = [read_metrics(tmp_path / name) for name in ("run", "again")]
    assert [line for line in lines[0] if "test" not in str(line)] == lines[1]

    # Another teacher under the same name.
    save_teacher(tmp_path / "teacher", scale=10.0)
    with raises("start-changed", "other weights"):
        train("--run.resume=auto", "--training.epochs=3")


def test_backbone_and_window_are_those_of_the_teacher_unless_they_are_given(tmp_path):
    teacher = str(save_teacher(tmp_path / "teacher"))

    def read(*settings):
        name, config = read_student(teacher, settings)
        assert (name, config.training.teacher) == ("tagging", teacher)
        return config.backbone.source, config.data.window_seconds

    # The quickstart, whose config has other ones; then values that are defaults elsewhere.
    assert read() == read("--data.source", "songs.csv") == ("random-small", 1.0)
    assert read("--backbone.source", "music2vec-v1") == ("music2vec-v1", 1.0)
    assert read("--data.window_seconds=5") == ("random-small", 5.0)
    (tmp_path / "student.yaml").write_text("backbone: {source: filterbank-small}")
    of_student = ["--config", str(tmp_path / "student.yaml"), "--data.source", "songs.csv"]
    assert read(*of_student) == ("filterbank-small", 1.0)
    _, config = read_student(teacher, [])
    assert config.data.source == "quickstart"


def test_a_recipe_that_shows_a_run_on_labels_refuses_a_teacher(repository, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher")
    source = write_clips(tmp_path, "tags")
    recipe = repository / "recipes" / "tagging.py"
    more = [f"--training.teacher={teacher}"]
    monkeypatch.setattr(sys, "argv", [str(recipe), *words(source, tmp_path / "run", *more)])
    reset_accelerate()
    with raises("teacher-needs-command"):
        runpy.run_path(str(recipe), run_name="recipe")["main"]()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", exhaustive("chords", "melody"))
def test_a_student_of_frames(name, tmp_path):
    task = TASKS[name].from_settings(TASKS[name].settings_class())
    teacher = save_teacher(tmp_path / "teacher", task)
    source = write_clips(tmp_path, {"chords": "chords", "melody": "notes"}[name])
    column = [] if name == "chords" else ["--task.label_column=notes"]
    more = [f"--training.teacher={teacher}", *OF_TEACHER, *column]
    reset_accelerate()
    config = read_config(name, words(source, tmp_path / "run", *more))
    results = train_task(config, TASKS[name]).results
    assert results["metrics"].keys() == TASKS[name].metric_names.keys()
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]


def test_refusals_name_the_remedy(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    source = write_clips(tmp_path, "tags")

    def train(task: str, *more: str) -> None:
        reset_accelerate()
        options = words(source, tmp_path / "run", f"--training.teacher={teacher}", *more)
        train_task(read_config(task, options), TASKS[task])

    with raises("teacher-other-task", "tagging", "genre"):
        train("genre")
    with raises("teacher-task-setting", "task.pos_weight"):
        train("tagging", "--task.pos_weight=balanced")
    for option, named in (
        ("--data.folds=3", "data.folds"),
        ("--augmentation.mixup_alpha=0.2", "mixup_alpha"),
        ("--cache.use=on", "cache.use"),
    ):
        with raises("settings-conflict", named):
            train("tagging", option)
    with raises("settings-range", "training.temperature"):
        train("tagging", "--training.temperature=0")
    with raises("settings-conflict", "training.teacher"):
        read_config("pretrain", [f"--training.teacher={teacher}"])
    assert not (tmp_path / "run").exists()


def test_the_licence_of_another_teacher_is_not_lost(tmp_path, caplog):
    from m2v_finetune.training.distillation import carry_licence, require_same_frames

    teacher = TaskModel.from_pretrained(save_teacher(tmp_path / "teacher"))
    student = TaskModel.from_pretrained(tmp_path / "teacher")
    require_same_frames(student, teacher, "teacher")
    carry_licence(student, teacher)
    assert student.backbone.licence == "apache-2.0"
    teacher.backbone.licence = "cc-by-nc-4.0"
    carry_licence(student, teacher)
    assert student.backbone.licence == ""
    assert "cc-by-nc-4.0" in caplog.text
    teacher.backbone.sample_rate = 24_000
    with raises("teacher-other-rate", "sample rate"):
        require_same_frames(student, teacher, "teacher")
