"""A backbone with a linear classifier, as a network of transformers alone: `build_classifier`.

The ``...ForSequenceClassification`` classes of transformers compute, with ``use_weighted_layer_sum``, the sum
of all hidden states with weights softmax(layer_weights), else the last hidden state; then a linear layer
``projector`` of each frame, the mean over frames, and a linear layer ``classifier``. There is no activation
between them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.encoders.encoder import known_settings

NO_WEIGHT = -1e4
"""Layer weight whose softmax is exactly 0 in float32, and which float16 can hold."""


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Linear function of the weighted hidden states.

    Attributes:
        layer_weights: Weight of each hidden state, (num_hidden_states,), positive, of sum 1; None for the
            last hidden state alone.
        projector: Weight (hidden_size, hidden_size) and bias (hidden_size,) of the layer before the mean.
        classifier: Weight (labels, hidden_size) and bias (labels,) of the layer after it.
    """

    layer_weights: Tensor | None
    projector: tuple[Tensor, Tensor]
    classifier: tuple[Tensor, Tensor]


def build_classifier(
    backbone: Backbone, linear: LinearClassifier, *, labels: list[str], problem_type: str
) -> tuple[PreTrainedModel, Wav2Vec2FeatureExtractor]:
    """Return a network of transformers with the weights of a backbone, and its feature extractor.

    In networks with a final norm, versions of transformers differ about the last hidden state: it is before
    or after that norm. A truncated backbone has no norm there, so its network gets one more layer, whose
    output has the weight 0: all hidden states in use are below the last one.

    Args:
        backbone: Backbone without adapters.
        linear: Weights above it.
        labels: Name of each output.
        problem_type: Meaning of the outputs, such as ``multi_label_classification``.

    """
    encoder, weights = backbone.encoder, linear.layer_weights
    num_layers = backbone.num_layers
    is_truncated = backbone.num_layers < backbone.settings["num_hidden_layers"]
    is_without_norm = is_truncated and encoder.has_final_norm(backbone.network.config)
    if is_without_norm:
        if weights is None:
            weights = torch.eye(num_layers + 1)[num_layers]
        weights = torch.cat([weights, weights.new_zeros(1)])
        num_layers += 1
    config = encoder.config_class(
        **{
            **known_settings(backbone.settings, encoder),
            "num_hidden_layers": num_layers,
            "apply_spec_augment": False,
            "mask_time_prob": 0.0,  # so that there is no embedding of masked frames
            "mask_feature_prob": 0.0,
            "layerdrop": 0.0,
            "use_weighted_layer_sum": weights is not None,
            "classifier_proj_size": len(linear.projector[1]),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": problem_type,
            # The last hidden state is the output of the network, after its final norm.
            "tie_last_hidden_states": True,
        }
    )
    config._attn_implementation = "sdpa"
    network = encoder.classifier_class(config)
    tensors = _tensors(network.base_model_prefix, backbone, linear, weights)
    missing = network.load_state_dict(tensors, strict=not is_without_norm).missing_keys
    for name in missing:  # of the layer and norm that are not in use
        if encoder.layers in name:
            network.state_dict()[name].zero_()
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=backbone.sample_rate,
        padding_value=0.0,
        do_normalize=backbone.normalize,
        return_attention_mask=False,
    )
    return network.eval(), extractor


def _tensors(
    prefix: str, backbone: Backbone, linear: LinearClassifier, weights: Tensor | None
) -> dict[str, Tensor]:
    """Return the tensors of the classifier by name."""
    tensors = {f"{prefix}.{name}": tensor for name, tensor in backbone.network.state_dict().items()}
    if weights is not None:
        tensors["layer_weights"] = weights.log().clamp(min=NO_WEIGHT)
    for name in ("projector", "classifier"):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = getattr(linear, name)
    return tensors
