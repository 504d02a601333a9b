"""The model card: what the Hub reads of it, what people read, and what nobody may read."""

import copy
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from markdown_it import MarkdownIt
from run_facts import backbone_facts, training_facts
from support.models import build_tagger

from m2v_finetune.backbones.checkpoints import CHECKPOINTS
from m2v_finetune.config import (
    AugmentationConfig,
    BackboneConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    PublishConfig,
    RecipeConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.files import write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import save_config
from m2v_finetune.publishing.card import BACKBONE_CITATIONS, TEMPLATE, render_card
from m2v_finetune.publishing.text import public_settings
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.environment import describe_environment

CAPTIONS = {
    "layer_weights.png": "Weight of each hidden state",
    "training.png": "Loss and validation",
    "per_label_roc_auc.png": "ROC-AUC of each label",
}
MAGNATAGATUNE = DatasetInfo(
    name="magnatagatune",
    title="MagnaTagATune",
    licence="CC BY-NC-SA 3.0",
    citation="@inproceedings{law2009,\n  title = {Evaluation of Algorithms Using Games}\n}",
    homepage="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
)


TASK = Tagging(labels=("guitar", "no vocals"), label_column="tags")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    task: TaggingConfig = field(default_factory=TaggingConfig)


def write_run(
    folder: Path,
    *,
    config: Config | None = None,
    dataset: DatasetInfo = MAGNATAGATUNE,
    licence: str = "cc-by-nc-4.0",
    **changes: Any,
) -> Path:
    """Write what a recipe leaves in its folder, as far as the card reads it."""
    config = config or Config(data=DataConfig(source="manifest.csv"))
    data = config.data
    # As a run completes them.
    data = replace(
        data,
        window_seconds=data.window_seconds or 5.0,
        windows_per_track=data.windows_per_track or 1,
    )
    config = replace(config, data=data)
    folder.mkdir(exist_ok=True)
    save_config(config, folder / "config.yaml")
    write_json(folder / "environment.json", describe_environment())
    results = {
        "task": "tagging",
        "split": "test",
        "num_tracks": 5329,
        "num_skipped_tracks": {"train": 0, "validation": 0, "test": 0},
        "metrics": {
            "roc_auc": {"value": 0.91234567, "low": 0.90111111, "high": 0.92222222},
            "average_precision": {"value": 0.4021, "low": 0.38, "high": 0.42},
        },
        "per_label": {
            "guitar": {"roc_auc": 0.9, "average_precision": 0.8, "num_positive": 1200},
            "no vocals": {"roc_auc": 0.7, "average_precision": 0.3, "num_positive": 30},
        },
        "labels_left_out": [],
        "about_metrics": "Each metric is the mean over labels.",
        "metric_names": {"roc_auc": "ROC-AUC", "average_precision": "average precision"},
        "selection_metric": "roc_auc",
        "hop_seconds": config.data.hop_seconds or config.data.window_seconds,
        "head": TASK.describe_head(config.head),
        "validation": {"roc_auc": 0.8642},
        "best_epoch": 6,
        "num_epochs": 8,
        "num_steps": 80,
        "layer_weights": [0.1, 0.5, 0.4],
        "num_trained_parameters": 67_000,
        "num_parameters": 1_000_000,
        "num_skipped_steps": 0,
        "num_tracks_of_splits": {"train": 18706, "validation": 1825, "test": 5329},
        "tuning": config.tuning.method,
        "training": training_facts(config),
        "dataset": asdict(dataset),
        "backbone": backbone_facts(config, licence=licence),
        "seconds": {"training": 71.2, "test": 3.0},
    }
    write_json(folder / "results.json", results | changes)
    return folder


def card_data(**changes: Any) -> dict[str, Any]:
    return {
        "library_name": "m2v-finetune",
        "tags": ["music", "audio", "tagging", "m2v-finetune"],
        "pipeline_tag": "audio-classification",
        "license": "cc-by-nc-4.0",
        "base_model": "m-a-p/music2vec-v1",
        "base_model_relation": "finetune",
    } | changes


def without(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}


def render(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> ModelCard:
    """Render a card and parse it back as the Hub's client does."""
    arguments: dict[str, Any] = {"repo_id": "me/my-tagger", "captions": CAPTIONS} | changes
    return ModelCard(render_card(folder, data or card_data(), **arguments))


def section(card: ModelCard, title: str) -> str:
    found = re.search(rf"^## {title}\n\n(.+?)(?=\n\n## |\Z)", card.text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def tables(markdown: str) -> list[list[list[str]]]:
    """Return the text of the cells of the tables of a Markdown text, as a renderer shows them."""
    found: list[list[list[str]]] = []
    is_cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif is_cell:
            found[-1][-1].append("".join(child.content for child in token.children or []))
        is_cell = token.type in ("th_open", "td_open")
    return found


class TestMetadata:
    def test_states_what_the_hub_asks_for(self, tmp_path: Path) -> None:
        data = render(write_run(tmp_path)).data
        assert data.license == "cc-by-nc-4.0"
        assert data.base_model == "m-a-p/music2vec-v1"
        assert data.base_model_relation == "finetune"
        assert data.library_name == "m2v-finetune"
        assert data.pipeline_tag == "audio-classification"
        assert data.tags == ["music", "audio", "tagging", "m2v-finetune"]
        assert data.metrics == ["roc_auc", "average_precision"]
        assert data.model_name == "my-tagger"

    def test_has_one_result_for_each_metric_with_its_interval(self, tmp_path: Path) -> None:
        results = render(write_run(tmp_path)).data.eval_results
        assert results is not None
        assert [result.metric_type for result in results] == ["roc_auc", "average_precision"]
        assert [result.metric_name for result in results] == ["ROC-AUC", "average precision"]
        assert [result.metric_value for result in results] == [0.9123, 0.4021]
        assert results[0].metric_args == {"confidence_level": 0.95, "low": 0.9011, "high": 0.9222}
        assert results[1].metric_args == {"confidence_level": 0.95, "low": 0.38, "high": 0.42}
        for result in results:
            assert result.task_type == "audio-classification"
            assert result.dataset_type == "magnatagatune"
            assert result.dataset_name == "MagnaTagATune"
            assert result.dataset_split == "test"

    def test_model_index_has_the_published_layout(self, tmp_path: Path) -> None:
        text = render_card(write_run(tmp_path), card_data(), repo_id=None, captions={})
        [entry] = yaml.safe_load(text.split("---\n")[1])["model-index"]
        assert entry["name"] == "music2vec-v1-probe-tagging"
        [result] = entry["results"]
        assert set(result) == {"task", "dataset", "metrics"}
        assert len(result["metrics"]) == 2

    @pytest.mark.parametrize(
        ("name", "dataset_type", "datasets"),
        [
            ("me/songs", "me/songs", ["me/songs"]),
            ("My songs (2024)", "My-songs-2024", None),
            ("音楽", "own-data", None),
        ],
    )
    def test_names_the_data_as_the_hub_takes_it(
        self, tmp_path: Path, name: str, dataset_type: str, datasets: list[str] | None
    ) -> None:
        data = render(write_run(tmp_path, dataset=DatasetInfo(name=name))).data
        assert data.datasets == datasets
        assert data.eval_results is not None
        assert data.eval_results[0].dataset_type == dataset_type
        assert data.eval_results[0].dataset_name == name

    def test_metric_without_a_value_is_left_out(self, tmp_path: Path) -> None:
        nothing = {"value": None, "low": None, "high": None}
        metrics = {"roc_auc": nothing, "average_precision": nothing}
        card = render(write_run(tmp_path, metrics=metrics, validation={"roc_auc": float("nan")}))
        assert card.data.eval_results is None
        assert tables(section(card, "Results"))[0][1] == ["ROC-AUC", "-", "-", "-"]

    def test_parses_back_to_itself(self, tmp_path: Path) -> None:
        text = render_card(
            write_run(tmp_path), card_data(), repo_id="me/my-tagger", captions=CAPTIONS
        )
        assert str(ModelCard(text)) == text


class TestText:
    def test_results_table(self, tmp_path: Path) -> None:
        card = render(write_run(tmp_path))
        assert tables(section(card, "Results"))[0] == [
            ["Metric", "Test", "95 % interval", "Validation"],
            ["ROC-AUC", "0.912", "0.901 to 0.922", "0.864"],
            ["average precision", "0.402", "0.380 to 0.420", "-"],
        ]
        assert "5,329 tracks of the test split" in card.text
        assert "bootstrap" in card.text

    def test_summary_states_what_from_what(self, tmp_path: Path) -> None:
        config = Config(
            data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1),
            tuning=TuningConfig(method="lora"),
        )
        summary = render(write_run(tmp_path, config=config)).text.split("\n## ")[0]
        assert "# my-tagger" in summary
        assert "music tagging with 2 labels" in summary
        assert "[m-a-p/music2vec-v1](https://huggingface.co/m-a-p/music2vec-v1)" in summary
        assert "[MagnaTagATune](<https://mirg.city.ac.uk/" in summary
        assert "the method is LoRA" in summary
        assert "random" not in summary

    @pytest.mark.parametrize(
        ("source", "licence"),
        [
            ("random-small", "apache-2.0"),
            ("folder/random_small", ""),
            ("me/tiny", "mit (random weights)"),
        ],
    )
    def test_random_backbone_is_called_so(self, tmp_path: Path, source: str, licence: str) -> None:
        config = Config(
            data=DataConfig(source="quickstart"), backbone=BackboneConfig(source=source)
        )
        folder = write_run(tmp_path, config=config, licence=licence)
        data = without(card_data(license="apache-2.0"), "base_model", "base_model_relation")
        card = render(folder, data)
        assert card.data.base_model is None
        summary = card.text.split("\n## ")[0]
        assert "random weights" in summary
        assert "demonstration" in summary
        assert "random weights" in section(card, "Limits")

    def test_pictures_are_linked_by_relative_path_in_their_sections(self, tmp_path: Path) -> None:
        card = render(write_run(tmp_path))
        links = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", card.text)
        assert {target: caption for caption, target in links} == {
            f"plots/{name}": caption for name, caption in CAPTIONS.items()
        }
        assert len(links) == len(CAPTIONS)
        assert "plots/per_label_roc_auc.png" in section(card, "Results")
        assert "plots/layer_weights.png" in section(card, "Layers")
        assert "plots/training.png" in section(card, "Method")
        assert "](plots/" not in render(tmp_path, captions={}).text

    @pytest.mark.parametrize(
        ("weighting", "weights", "expected"),
        [
            ("softmax", [0.1, 0.5, 0.4], "0.500, is that of state 1"),
            ("conv1d", [0.1, 0.2, -0.9], "-0.900, is that of state 2"),
            ("last", [0.0, 0.0, 1.0], "the last hidden state alone"),
            (1, [0.0, 1.0], "hidden state 1 alone"),
        ],
    )
    def test_layers(
        self, tmp_path: Path, weighting: Any, weights: list[float], expected: str
    ) -> None:
        config = Config(
            data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1),
            backbone=BackboneConfig(layer_weighting=weighting),
        )
        folder = write_run(tmp_path, config=config, layer_weights=weights)
        assert expected in section(render(folder), "Layers")

    def test_usage_names_the_repository_or_a_placeholder(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        usage = section(render(folder), "How to use")
        assert "m2v predict me/my-tagger song.mp3" in usage
        assert 'TaskModel.from_pretrained("me/my-tagger")' in usage
        usage = section(render(folder, repo_id=None), "How to use")
        assert "m2v predict path/to/model song.mp3" in usage

    def test_training_data_and_licences(self, tmp_path: Path) -> None:
        card = render(write_run(tmp_path))
        assert "CC BY-NC-SA 3.0" in section(card, "Training data")
        licence = section(card, "Licence")
        assert "**cc-by-nc-4.0**" in licence
        assert "forbids commercial use" in licence
        assert "CC BY-NC-SA 3.0" in licence

    def test_permissive_licence_forbids_nothing(self, tmp_path: Path) -> None:
        card = render(write_run(tmp_path), card_data(license="apache-2.0"))
        assert card.data.license == "apache-2.0"
        assert "commercial" not in section(card, "Licence")

    def test_unknown_licences_are_reported(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path, licence="", dataset=DatasetInfo(name="songs"))
        card = render(folder, without(card_data(), "license"))
        assert card.data.license == "unknown"
        licence = section(card, "Licence")
        assert re.search(r"licence of the backbone, .*, is unknown", licence)
        assert "licence of the training data is unknown" in licence
        assert "Licence of the data: unknown" in section(card, "Training data")

    def test_method_is_that_of_the_config(self, tmp_path: Path) -> None:
        config = Config(
            data=DataConfig(source="x.csv", window_seconds=30, hop_seconds=15),
            head=HeadConfig(kind="mlp", pooling="attention", hidden_size=256),
            tuning=TuningConfig(method="lora", r=8, lora_alpha=16, lora_targets="feed_forward"),
            augmentation=AugmentationConfig(transforms=[{"name": "gain"}, {"name": "low_pass"}]),
            optimizer=OptimizerConfig(backbone_learning_rate=3e-4, layer_decay=0.9),
            training=TrainingConfig(epochs=12, gradient_accumulation_steps=4),
            run=RunConfig(seed=7),
        )
        folder = write_run(
            tmp_path,
            config=config,
            backbone=backbone_facts(config, revision="abc123"),
        )
        [rows] = tables(section(render(folder), "Method"))
        method = {row[0]: row[1] for row in rows}
        assert method["Backbone"].endswith("revision abc123")
        assert (
            method["Tuning"] == "LoRA, rank 8, alpha 16, dropout 0, on feed-forward linear layers"
        )
        assert method["Trained parameters"] == "67,000 of 1,000,000 (6.7%)"
        assert method["Head"].startswith("MLP with one hidden layer of 256")
        assert "a learned weighted mean" in method["Head"]
        assert method["Windows"].startswith("30 s; 1 random window of a track")
        assert method["Windows"].endswith("every 15 s")
        assert method["Augmentation"] == "gain, low_pass"
        assert method["Peak learning rates"] == (
            "0.0001 for head and layer weights, 0.0003 for the backbone, times 0.9 for each layer "
            "below the top"
        )
        assert method["Batch"] == "64 windows a step: 16 on a device x 4 accumulated"
        assert method["Length"] == "8 epochs of at most 12, stopped early; 80 steps; 71 seconds"
        assert method["Precision and device"] == "float32, on CPU"
        assert method["Chosen weights"] == ("epoch 6, the best by ROC-AUC of the validation tracks")
        assert method["Seed"] == "7"

    @pytest.mark.parametrize(
        ("changes", "row", "expected"),
        [
            ({"optimizer": "adafactor"}, "Optimizer", "Adafactor"),
            ({"optimizer": "adamw_8bit"}, "Optimizer", "AdamW with moments in 8 bits"),
            ({"optimizer": "paged_adamw_8bit"}, "Optimizer", "paged AdamW with moments in 8 bits"),
            ({"num_warmup_steps": 0}, "Optimizer", "matrices; half a cosine to zero at step 120"),
            ({"mixed_precision": "fp16", "device": "cuda"}, "Precision", "(fp16), on CUDA"),
            ({"mixed_precision": "bf16"}, "Precision", "(bf16), on CPU"),
            (
                {"device_batch_size": 2, "num_accumulated": 8, "num_processes": 3},
                "Batch",
                "16 windows a step: 2 on a device x 8 accumulated x 3 processes",
            ),
            ({"stopped_early": False}, "Length", "at most 20; 80"),
            ({"num_longer_tracks": 0}, "Windows", "; 1 window of a track"),
            ({"num_shorter_tracks": 1}, "Windows", "1 training track padded"),
            ({"num_variants": 4}, "Windows", "drawn 4 times, in turns"),
            ({"layer_weighting": "last"}, "Peak", "0.001 for the head"),
            ({"spec_augment": True}, "Augmentation", "SpecAugment"),
        ],
    )
    def test_the_method_is_what_the_run_did(
        self, tmp_path: Path, changes: dict[str, Any], row: str, expected: str
    ) -> None:
        config = Config(data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1))
        folder = write_run(tmp_path, config=config, training=training_facts(config, **changes))
        [rows] = tables(section(render(folder), "Method"))
        [value] = [text for name, text in rows if name.startswith(row)]
        assert expected in value

    def test_what_else_may_not_be_as_it_mostly_is(self, tmp_path: Path) -> None:
        config = Config(data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1))
        folder = write_run(
            tmp_path,
            config=config,
            num_skipped_steps=3,
            validation={"roc_auc": None},
            backbone=backbone_facts(config, num_layers=6),
            outputs_hardly_vary=True,
        )
        card = render(folder)
        [rows] = tables(section(card, "Method"))
        method = dict(rows)
        assert "3 of them without effect" in method["Length"]
        assert "the best" not in method["Chosen weights"]
        assert method["Backbone"].endswith("the first 6 of 12 layers")
        assert "hardly vary" in section(card, "Limits")

    def test_a_run_that_was_resumed_elsewhere(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        once = {**describe_environment(), "changed": {}}
        older = once["packages"] | {"torch": "2.7.0"}
        twice = {**once, "packages": older, "num_processes": 2}
        twice["changed"] = {
            "training.epochs": [12, 30],
            "cache.folder": ["/home/miller/caches", None],
            "publish.repo_id": [None, "me/x"],
        }
        lines = [json.dumps(one) + "\n" for one in (once, twice)]
        (folder / "resumes.jsonl").write_text("".join(lines))
        card = render(folder)
        [rows] = tables(section(card, "Method"))
        [resumed] = [value for name, value in rows if name == "Resumed"]
        assert resumed.startswith("2 times")
        assert "training.epochs 30 (12 before)" in resumed
        assert "publish" not in resumed
        assert "miller" not in card.text
        settings = section(card, "Settings and versions")
        assert f"{describe_environment()['packages']['torch']} -> 2.7.0" in settings.replace(
            "\\", ""
        )
        assert "| Processes | 1 -> 2 |" in settings.replace("\\", "")
        assert "repeat the run" not in settings

    def test_probe_has_no_rate_for_the_backbone(self, tmp_path: Path) -> None:
        [rows] = tables(section(render(write_run(tmp_path)), "Method"))
        assert ["Peak learning rates", "0.001 for head and layer weights"] in rows

    def test_limits_name_what_was_left_out(self, tmp_path: Path) -> None:
        folder = write_run(
            tmp_path,
            labels_left_out=["harp", "sitar"],
            num_skipped_tracks={"train": 3, "validation": 0, "test": 1},
        )
        limits = section(render(folder), "Limits")
        assert "harp, sitar" in limits
        assert "3 in train, 1 in test" in limits
        assert "validation" not in limits
        limits = section(render(write_run(tmp_path)), "Limits")
        assert "left out" not in limits
        assert "no metric" not in limits

    def test_labels_survive_the_tables(self, tmp_path: Path) -> None:
        names = [
            "drum | bass",
            "a_b_c *loud*",
            "<b>",
            "back\\slash",
            "[link](x)",
            "`code`",
            "two\nlines",
        ]
        value = {"roc_auc": 0.9, "average_precision": None, "num_positive": 1200}
        folder = write_run(
            tmp_path, per_label=dict.fromkeys(names, value), labels_left_out=["<script>"]
        )
        card = render(folder)
        [_, rows] = tables(section(card, "Results"))
        assert rows[0] == ["Label", "ROC-AUC", "average precision", "Tracks that have it"]
        assert [row[0] for row in rows[1:]] == [name.replace("\n", " ") for name in names]
        assert {tuple(row[1:]) for row in rows[1:]} == {("0.900", "-", "1,200")}
        assert "\\<script\\>" in section(card, "Limits")

    def test_every_table_is_rectangular_and_every_details_block_closed(
        self, tmp_path: Path
    ) -> None:
        card = render(write_run(tmp_path))
        found = tables(card.text)
        assert len(found) == 4  # results, labels, method, versions
        for rows in found:
            assert len({len(row) for row in rows}) == 1
            assert len(rows) > 2
        assert card.text.count("<details>") == card.text.count("</details>") == 3

    def test_settings_are_complete(self, tmp_path: Path) -> None:
        config = Config(
            data=DataConfig(source="music/songs.csv", window_seconds=5.0, windows_per_track=1),
            run=RunConfig(output_dir="runs/one"),
            publish=PublishConfig(repo_id="me/my-tagger", private=True),
        )
        settings = section(render(write_run(tmp_path, config=config)), "Settings and versions")
        block = re.search(r"```yaml\n(.+?)\n```", settings, re.DOTALL)
        assert block
        assert yaml.safe_load(block[1]) == asdict(config)
        assert f"| torch | {describe_environment()['packages']['torch']}" in settings

    def test_citations_of_backbone_and_data(self, tmp_path: Path) -> None:
        citation = section(render(write_run(tmp_path)), "Citation")
        assert "https://arxiv.org/abs/2212.02508" in citation
        assert citation.count("```bibtex") == 2
        assert MAGNATAGATUNE.citation in citation

    def test_mert_is_cited_by_its_own_paper(self, tmp_path: Path) -> None:
        config = Config(
            data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1),
            backbone=BackboneConfig(source="m-a-p/MERT-v1-95M"),
        )
        citation = section(render(write_run(tmp_path, config=config)), "Citation")
        assert "2306.00107" in citation
        assert "2212.02508" not in citation

    def test_every_published_checkpoint_can_be_cited(self) -> None:
        cited = {c.citation for c in CHECKPOINTS.values() if c.citation}
        assert cited == set(BACKBONE_CITATIONS)

    def test_nothing_to_cite_leaves_no_section(self, tmp_path: Path) -> None:
        config = Config(
            data=DataConfig(source="x.csv", window_seconds=5.0, windows_per_track=1),
            backbone=BackboneConfig(source="random-small"),
        )
        folder = write_run(tmp_path, config=config, dataset=DatasetInfo(name="songs"))
        text = render(folder).text
        assert "Citation" not in text
        for title, body in re.findall(r"^## (.+)\n\n(.*)$", text, re.MULTILINE):
            assert body, title
            assert not body.startswith("## "), title


class TestTemplate:
    def test_every_name_is_a_fact_and_every_fact_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Jinja renders a name that does not exist as nothing."""
        given: dict[str, Any] = {}
        from_template = ModelCard.from_template

        def spy(*arguments: Any, **facts: Any) -> ModelCard:
            given.update(facts)
            return from_template(*arguments, **facts)

        monkeypatch.setattr(ModelCard, "from_template", spy)
        render(write_run(tmp_path))
        tree = Environment(autoescape=True).parse(TEMPLATE.read_text(encoding="utf-8"))
        assert find_undeclared_variables(tree) == given.keys() - {"template_path"} | {"card_data"}

    def test_text_of_users_is_no_template(self, tmp_path: Path) -> None:
        text = "{{ 600 * 7000 }} {% raw %} {# note #}"
        value = {"roc_auc": 0.9, "average_precision": 0.4, "num_positive": 12}
        folder = write_run(
            tmp_path,
            dataset=DatasetInfo(name=text, title=text, licence=text, citation=text),
            per_label={text: value},
            labels_left_out=[text],
        )
        card = render(folder)
        assert card.text.count("{{ 600 \\* 7000 }} {% raw %} {# note #}") == 8
        assert "4200000" not in card.text


class TestPrivacy:
    def test_no_local_path_and_no_token_is_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"
        monkeypatch.setenv("HF_TOKEN", token)
        secret = "/home/miller/clients"
        monkeypatch.setattr(
            "sys.argv", ["tagging.py", "--data.source", f"{secret}/a.csv", f"--token={token}"]
        )
        config = Config(
            data=DataConfig(source=f"{secret}/My Music/songs.csv"),
            backbone=BackboneConfig(source="~/clients/backbones/mine"),
            augmentation=AugmentationConfig(
                transforms=[{"name": "impulse_response", "ir_path": f"{secret}/halls/"}]
            ),
            run=RunConfig(output_dir=str(tmp_path)),
            publish=PublishConfig(repo_id="me/my-tagger"),
        )
        folder = write_run(tmp_path, config=config)
        assert token in (folder / "environment.json").read_text()
        data = without(card_data(), "base_model", "base_model_relation")
        text = str(render(folder, data))
        assert token not in text
        assert "miller" not in text
        assert "clients" not in text
        assert str(tmp_path) not in text
        assert str(Path.home()) + "/" not in text
        assert "source: songs.csv" in text
        assert "source: mine" in text
        assert "ir_path: halls" in text
        assert f"output_dir: {tmp_path.name}" in text
        assert "`mine`" in text

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/home/me/x.csv", "x.csv"),
            ("~/x.csv", "x.csv"),
            ("../../me/x.csv", "x.csv"),
            ("C:\\Users\\me\\x.csv", "x.csv"),
            ("C:/Users/me/x.csv", "x.csv"),
            ("\\\\server\\me\\x.csv", "x.csv"),
            ("/home/me/x/", "x"),
            ("data/x.csv", "data/x.csv"),
            ("m-a-p/music2vec-v1", "m-a-p/music2vec-v1"),
            ("quickstart", "quickstart"),
        ],
    )
    def test_of_a_path_elsewhere_the_last_part_is_shown(self, path: str, shown: str) -> None:
        assert public_settings({"a": [{"b": path}]}) == {"a": [{"b": shown}]}

    def test_labels_and_numbers_stay(self) -> None:
        settings = {"task": {"labels": ["/m/04rlf", "~90s"]}, "seed": 0, "x": None, "p": 0.5}
        assert public_settings(settings) == settings


def test_a_real_model_and_its_card_work_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python that a card of a real model shows is run, and prints tags."""
    config = Config(
        data=DataConfig(source="quickstart"),
        backbone=BackboneConfig(source="random-small"),
        tuning=TuningConfig(method="lora"),
    )
    model = TaskModel.build(
        task=Tagging(labels=("guitar", "drums"), label_column="tags"),
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=5.0,
    )
    dataset = DatasetInfo(**json.loads((QUICKSTART_DIR / "dataset.json").read_text("utf-8")))
    folder = write_run(tmp_path, config=config, dataset=dataset, licence=model.backbone.licence)
    model.card = render_card(folder, model.card_data(), repo_id=None, captions=CAPTIONS)
    model.save_pretrained(tmp_path / "model")

    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None
    code = re.search(r"```python\n(.+?)\n```", card.text, re.DOTALL)
    assert code
    song = next((QUICKSTART_DIR / "audio").glob("test-*.ogg"))
    assert "plots/" not in card.text  # no picture is there
    shown = code[1].replace("path/to/model", str(tmp_path / "model"))
    exec(shown.replace("song.mp3", str(song)), {})
    printed = capsys.readouterr().out
    assert "guitar" in printed
    assert "drums" in printed


def test_a_card_is_that_of_the_saved_form(tmp_path: Path) -> None:
    """A model that is loaded and saved in another form has its metadata, its code and no broken picture."""
    model = build_tagger(method="lora")
    model.backbone.source = "me/backbone"
    text = f"---\n{ModelCardData(**model.card_data()).to_yaml()}\n---\n\n# Mine\n\n"
    model.card = f"{text}![Loss](plots/loss.png)\n\n## Limits\n\nNone.\n"
    folders = {name: tmp_path / name for name in ("trained", "native", "again", "merged")}
    model.save_pretrained(folders["trained"], weights="trained")
    model.save_pretrained(folders["native"], native=True)
    TaskModel.from_pretrained(folders["native"]).save_pretrained(folders["again"])
    copy.deepcopy(model).merge_and_unload().save_pretrained(folders["merged"])
    cards = {name: ModelCard.load(folder / "README.md") for name, folder in folders.items()}
    found = {
        name: (card.data.library_name, card.data.base_model_relation, "pipeline(" in card.text)
        for name, card in cards.items()
    }
    assert found == {
        "trained": ("m2v-finetune", "adapter", False),
        "native": ("transformers", "finetune", True),
        "again": ("m2v-finetune", "finetune", False),
        "merged": ("m2v-finetune", "finetune", False),
    }
    for card in cards.values():
        assert "plots/" not in card.text
        assert "# Mine" in card.text
        assert "## Limits\n\nNone." in card.text

    # A picture that is there stays, and a card that somebody wrote is kept as it is.
    (folders["again"] / "plots").mkdir()
    (folders["again"] / "plots" / "loss.png").touch()
    model.save_pretrained(folders["again"])
    assert "(plots/loss.png)" in (folders["again"] / "README.md").read_text()
    for own in ("No metadata.\n", "---\n- a list\n---\nText\n", "---\n: [\n---\nText\n"):
        model.card = own
        model.save_pretrained(folders["again"])
        assert own in (folders["again"] / "README.md").read_text()
