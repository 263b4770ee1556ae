"""Models of images and sounds, tiny and from their configurations, and CLIP, which reads captions too."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from alone import Case, Catalogue, class_loss, enter, pixel_loss, yes_loss
from tiny import CLASSES, SEQUENCE, SIZES, WIDE, classes, draw, images, seeded, sequences, vision
from torch import Tensor, nn

from inflib import Bernoulli, CrossEntropy, PixelCrossEntropy

IMAGES: Catalogue = {}

# --- images and sounds ------------------------------------------------------------------------------------------------

IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_labels": CLASSES, "initializer_range": 0.3}


@enter(IMAGES, "ViT")
def vit() -> Case:
    config = transformers.ViTConfig(
        **IMAGE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return vision(transformers.ViTForImageClassification, config)


@enter(IMAGES, "Swin")
def swin() -> Case:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, num_labels=CLASSES, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2,
        initializer_range=0.3,
    )  # fmt: skip
    return vision(transformers.SwinForImageClassification, config)


@enter(IMAGES, "ConvNext")
def convnext() -> Case:
    config = transformers.ConvNextConfig(
        image_size=16, patch_size=2, num_labels=CLASSES, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2,
        initializer_range=0.3, layer_scale_init_value=0.5,
    )  # fmt: skip
    return vision(transformers.ConvNextForImageClassification, config)


@enter(IMAGES, "ResNet")
def resnet() -> Case:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return vision(transformers.ResNetForImageClassification, config)


@enter(IMAGES, "Segformer")
def segformer() -> Case:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 12], num_attention_heads=[1, 2], sr_ratios=[2, 1],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=CLASSES,
        initializer_range=0.3,
    )  # fmt: skip
    g, found = draw(), []
    for x, y in images():
        pixels = torch.randint(0, CLASSES, (len(y), 8, 8), generator=g)
        found.append((x, pixels.masked_fill(torch.rand(pixels.shape, generator=g) < 0.2, 255)))
    model = seeded(transformers.SegformerForSemanticSegmentation, config)
    return Case(model, PixelCrossEntropy(ignore_index=255), pixel_loss, found)


@enter(IMAGES, "Wav2Vec2")
def wav2vec2() -> Case:
    config = transformers.Wav2Vec2Config(
        **SIZES, intermediate_size=24, initializer_range=0.3, feat_extract_norm="layer", conv_dim=[8, 8],
        conv_stride=[3, 2], conv_kernel=[4, 3], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True, classifier_proj_size=8, num_labels=CLASSES, mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    g, found = draw(), []
    for lengths in ((40, 31, 36), (26, 32, 20, 31), (30, 14, 20, 29, 22)):
        there = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        sounds = torch.randn(there.shape, generator=g) * there
        found.append(({"input_values": sounds, "attention_mask": there}, classes(len(lengths), g)))
    model = seeded(transformers.Wav2Vec2ForSequenceClassification, config)
    return Case(model, CrossEntropy(), class_loss, found, {"attention_mask": ("input_values",)})


def clip_model() -> nn.Module:
    text = {**WIDE, "projection_dim": 8, "eos_token_id": 2}
    image = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 24, "projection_dim": 8}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**image, "num_hidden_layers": 2, "num_attention_heads": 2},
        projection_dim=8,
        initializer_factor=10.0,
    )
    return seeded(transformers.CLIPModel, config)


class OwnPairs(nn.Module):
    """How well each caption fits its own image, (B,)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        found = self.model(**inputs)
        return (found.text_embeds * found.image_embeds).sum(-1) * self.model.logit_scale.exp()


def captions() -> list[Any]:
    """Captions of up to 5 tokens, as many as an image has positions, that end in token 2."""
    g, found = draw(), []
    for lengths in ((5, 3, 4), (4, 4, 2, 3), (5, 1, 2, 5, 2)):
        inputs = sequences(lengths, g)
        inputs["input_ids"][range(len(lengths)), [n - 1 for n in lengths]] = 2
        inputs["pixel_values"] = torch.randn(len(lengths), 3, 16, 16, generator=g)
        found.append((inputs, torch.randint(0, 2, (len(lengths),), generator=g).double()))
    return found


@enter(IMAGES, "CLIP")
def clip() -> Case:
    return Case(OwnPairs(clip_model()).eval(), Bernoulli(), yes_loss, captions(), SEQUENCE)


class Contrast(nn.Module):
    """CLIP's logits (B, B): every caption is held against every image of the batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits_per_text


@enter(IMAGES, "CLIP, contrastive")
def clip_contrastive() -> Case:
    data = [(x, torch.arange(len(y))) for x, y in captions()]
    return Case(Contrast(clip_model()).eval(), CrossEntropy(), class_loss, data, SEQUENCE, together=True)
