"""The architectures people bring, tiny and from their configurations alone, each with padded batches and an objective.

    python tests/architectures.py [NAME ...]     a table in markdown: what is covered, and how far from autograd's loop

Every model of Hugging Face's is in eval mode and float64, two layers deep, with weights drawn from a fixed seed, and sees
three batches of 3, 4 and 5 examples, one of them with as many positions as examples. ``CATALOGUE`` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import layouts
import peft
import torch
import transformers
from alone import Case, as_told, class_loss, examine, pixel_loss, token_loss, yes_loss
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inflib import Bernoulli, CrossEntropy, NextToken, PixelCrossEntropy

VOCABULARY, PAD, CLASSES = 19, 1, 3
IDS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 2}
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE: dict[str, Any] = {
    **SIZES,
    **IDS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
LENGTHS = ((6, 3, 5), (4, 4, 2, 3), (3, 1, 2, 3, 2))  # of the sequences in each batch
CATALOGUE: dict[str, Callable[[], Case]] = {}


def architecture(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        CATALOGUE[name] = build
        return build

    return add


def seeded(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """A model from its configuration, biases and scales moved off the 0 and 1 they begin at."""
    torch.manual_seed(0)
    model = build(config)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.double().eval()


# --- batches ----------------------------------------------------------------------------------------------------------


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def sequences(lengths: tuple[int, ...], generator: torch.Generator, side: str = "right") -> dict[str, Tensor]:
    """Token ids from 3 on, padded and masked."""
    T = max(lengths)
    at = torch.arange(T) if side == "right" else torch.arange(T).flip(0)
    there = at < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, VOCABULARY, (len(lengths), T), generator=generator)
    return {"input_ids": ids.where(there, PAD), "attention_mask": there.long()}


def classes(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (count,), generator=generator)


def labelled(more: Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]] = lambda x, _: x) -> list[Any]:
    """Sequences with a class each."""
    g = draw()
    return [(more(sequences(n, g), g), classes(len(n), g)) for n in LENGTHS]


def continued(side: str = "right", mask: bool = True) -> list[Any]:
    """Sequences with the tokens that follow; the first of every longer one is a prompt's."""
    g, found = draw(), []
    for lengths in LENGTHS:
        inputs = sequences(lengths, g, side)
        there = inputs["attention_mask"].bool()
        targets = torch.randint(3, VOCABULARY, there.shape, generator=g).where(there, -100)
        first = (there.cumsum(1) == 1) & (there.sum(1, keepdim=True) > 2)
        if side == "left":
            inputs["position_ids"] = (there.cumsum(1) - 1).clamp_min(0)
        found.append((inputs if mask else inputs["input_ids"], targets.masked_fill(first, -100)))
    return found


def images(size: int = 16, sizes: tuple[int, ...] = (3, 4, 5)) -> list[Any]:
    g = draw()
    return [({"pixel_values": torch.randn(n, 3, size, size, generator=g)}, classes(n, g)) for n in sizes]


SEQUENCE = {"attention_mask": ("input_ids",)}
CONTINUED = {"attention_mask": ("input_ids", "targets")}


def classifier(build: Callable[[Any], nn.Module], config: Any) -> Case:
    return Case(seeded(build, config), CrossEntropy(), class_loss, labelled(), SEQUENCE)


def causal(build: Callable[[Any], nn.Module], config: Any, side: str = "right") -> Case:
    padded = CONTINUED if side == "right" else {"attention_mask": ("input_ids", "position_ids", "targets")}
    return Case(seeded(build, config), NextToken(), token_loss, continued(side), padded)


def vision(build: Callable[[Any], nn.Module], config: Any) -> Case:
    return Case(seeded(build, config), CrossEntropy(), class_loss, images())


# --- encoders ---------------------------------------------------------------------------------------------------------


@architecture("BERT")
def bert() -> Case:
    return classifier(transformers.BertForSequenceClassification, transformers.BertConfig(**WIDE, num_labels=CLASSES))


@architecture("BERT, tokens")
def bert_tokens() -> Case:
    return Case(
        seeded(transformers.BertForTokenClassification, transformers.BertConfig(**WIDE, num_labels=VOCABULARY)),
        NextToken(), token_loss, continued(), CONTINUED,
    )  # fmt: skip


@architecture("RoBERTa")
def roberta() -> Case:
    return classifier(
        transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**WIDE, num_labels=CLASSES)
    )


@architecture("ALBERT")
def albert() -> Case:
    config = transformers.AlbertConfig(**WIDE, embedding_size=8, num_labels=CLASSES)
    return classifier(transformers.AlbertForSequenceClassification, config)


@architecture("DistilBERT")
def distilbert() -> Case:
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
    config = transformers.DistilBertConfig(
        **sizes, pad_token_id=PAD, max_position_embeddings=32, initializer_range=0.3, num_labels=CLASSES
    )
    return classifier(transformers.DistilBertForSequenceClassification, config)


@architecture("DeBERTa-v2")
def deberta() -> Case:
    config = transformers.DebertaV2Config(
        **WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=False,
        num_labels=CLASSES, pooler_hidden_size=16,
    )  # fmt: skip
    return classifier(transformers.DebertaV2ForSequenceClassification, config)


@architecture("DeBERTa-v2, one key")
def deberta_shared() -> Case:
    """Its key and query matrices read the positions' embeddings too, (1, 2k, d), whatever the batch."""
    config = transformers.DebertaV2Config(
        **WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=True,
        num_labels=CLASSES, pooler_hidden_size=16,
    )  # fmt: skip
    return classifier(transformers.DebertaV2ForSequenceClassification, config)


@architecture("multiple choice")
def multiple_choice() -> Case:
    g, found = draw(), []
    for lengths in LENGTHS:  # a question's choices have one length
        inputs = sequences(tuple(n for n in lengths for _ in range(CLASSES)), g)
        found.append(({k: x.unflatten(0, (-1, CLASSES)) for k, x in inputs.items()}, classes(len(lengths), g)))
    model = seeded(transformers.BertForMultipleChoice, transformers.BertConfig(**WIDE))
    return Case(model, CrossEntropy(), class_loss, found, SEQUENCE)


# --- decoders ---------------------------------------------------------------------------------------------------------


@architecture("GPT-2")
def gpt2() -> Case:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_inner=24, n_layer=2, n_head=2, initializer_range=0.3, **IDS
    )
    return causal(transformers.GPT2LMHeadModel, config)


@architecture("GPT-NeoX")
def gpt_neox() -> Case:
    return causal(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**WIDE))


@architecture("OPT")
def opt() -> Case:
    config = transformers.OPTConfig(
        **SIZES, **IDS, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.3
    )
    return causal(transformers.OPTForCausalLM, config)


def grouped_heads() -> dict[str, Any]:
    return {**WIDE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "tie_word_embeddings": False}


@architecture("Qwen2")
def qwen2() -> Case:
    return causal(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**grouped_heads()))


@architecture("Gemma")
def gemma() -> Case:
    return causal(transformers.GemmaForCausalLM, transformers.GemmaConfig(**grouped_heads()))


@architecture("Falcon")
def falcon() -> Case:
    config = transformers.FalconConfig(**SIZES, **IDS, ffn_hidden_size=24, initializer_range=0.3)
    return causal(transformers.FalconForCausalLM, config)


@architecture("Llama")
def llama() -> Case:
    return causal(transformers.LlamaForCausalLM, transformers.LlamaConfig(**grouped_heads()))


@architecture("Llama, padded left")
def llama_left() -> Case:
    return causal(transformers.LlamaForCausalLM, transformers.LlamaConfig(**grouped_heads()), "left")


@architecture("Llama, checkpointed")
def llama_checkpointed() -> Case:
    """Hugging Face's switch, which works in train mode only; there is no dropout."""
    case = llama()
    case.model.gradient_checkpointing_enable()
    case.model.train()
    return case


@architecture("Mixtral")
def mixtral() -> Case:
    config = transformers.MixtralConfig(
        **grouped_heads(), num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager"
    )  # the fused one has no float64
    return causal(transformers.MixtralForCausalLM, config)


class InDouble(TorchFunctionMode):
    """What a model's own code would round to float32 stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        wide = {torch.float32: torch.float64}
        func = Tensor.double if func is Tensor.float else func
        args = tuple(wide.get(x, x) if isinstance(x, torch.dtype) else x for x in args)
        return func(
            *args, **{k: wide.get(x, x) if isinstance(x, torch.dtype) else x for k, x in (kwargs or {}).items()}
        )


class Unrounded(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        with InDouble():
            return self.model(**inputs)


@architecture("Mamba")
def mamba() -> Case:
    """Its scan runs in float32, over as many positions as padding makes."""
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=3, conv_kernel=3,
        tie_word_embeddings=False, **IDS,
    )  # fmt: skip
    return causal(lambda config: Unrounded(transformers.MambaForCausalLM(config)), config)


# --- adapters ---------------------------------------------------------------------------------------------------------

ADAPTED = ["q_proj", "v_proj", "down_proj"]


class Int8Linear(nn.Linear):
    """A linear layer whose weight is kept as whole numbers, with a scale for each output."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def adapted(base: nn.Module, **options: Any) -> Case:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=ADAPTED, init_lora_weights=False, **options)
    model = peft.get_peft_model(base, config)
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.double()
    return Case(model.eval(), NextToken(), token_loss, continued(), CONTINUED)


@architecture("LoRA")
def lora() -> Case:
    return adapted(llama().model)


@architecture("LoRA, int8 base")
def lora_int8() -> Case:
    base = llama().model
    for name, module in list(base.named_modules()):
        if name.split(".")[-1].endswith("_proj"):
            base.set_submodule(name, Int8Linear(module))
    return adapted(base)


@architecture("DoRA")
def dora() -> Case:
    """Its adapters are also called on the unit matrix, for a norm through which no gradient goes."""
    return adapted(llama().model, use_dora=True)


# --- encoder and decoder ------------------------------------------------------------------------------------------------


@architecture("T5")
def t5() -> Case:
    """Sources shorter and longer than their targets, each with its own mask."""
    g, found = draw(), []
    for lengths, sources in zip(LENGTHS, ((4, 2, 3), (4, 2, 4, 1), (6, 2, 5, 1, 3)), strict=True):
        inputs, decoder = sequences(sources, g), sequences(lengths, g)
        there = decoder["attention_mask"].bool()
        targets = torch.randint(3, VOCABULARY, there.shape, generator=g).where(there, -100)
        found.append(({**inputs, **{f"decoder_{k}": x for k, x in decoder.items()}}, targets))
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**sizes, pad_token_id=PAD, decoder_start_token_id=0, dropout_rate=0.0)
    padded = {"attention_mask": ("input_ids",), "decoder_attention_mask": ("decoder_input_ids", "targets")}
    return Case(seeded(transformers.T5ForConditionalGeneration, config), NextToken(), token_loss, found, padded)


# --- images and sounds ------------------------------------------------------------------------------------------------

IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_labels": CLASSES, "initializer_range": 0.3}


@architecture("ViT")
def vit() -> Case:
    config = transformers.ViTConfig(
        **IMAGE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return vision(transformers.ViTForImageClassification, config)


@architecture("Swin")
def swin() -> Case:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, num_labels=CLASSES, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2,
        initializer_range=0.3,
    )  # fmt: skip
    return vision(transformers.SwinForImageClassification, config)


@architecture("ConvNext")
def convnext() -> Case:
    config = transformers.ConvNextConfig(
        image_size=16, patch_size=2, num_labels=CLASSES, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2,
        initializer_range=0.3, layer_scale_init_value=0.5,
    )  # fmt: skip
    return vision(transformers.ConvNextForImageClassification, config)


@architecture("ResNet")
def resnet() -> Case:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return vision(transformers.ResNetForImageClassification, config)


@architecture("Segformer")
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


@architecture("Wav2Vec2")
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


@architecture("CLIP")
def clip() -> Case:
    return Case(OwnPairs(clip_model()).eval(), Bernoulli(), yes_loss, captions(), SEQUENCE)


class Contrast(nn.Module):
    """CLIP's logits (B, B): every caption is held against every image of the batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits_per_text


@architecture("CLIP, contrastive")
def clip_contrastive() -> Case:
    data = [(x, torch.arange(len(y))) for x, y in captions()]
    return Case(Contrast(clip_model()).eval(), CrossEntropy(), class_loss, data, SEQUENCE, together=True)


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = ("model", "layers", "covered", "gradients", "dot products", "Λ", "A", "S", "refused")


def rows(name: str, case: Case) -> list[str]:
    """What is said of a case, and where it is refused with a way on, what is said then."""
    found = examine(case)
    if not found.refusal:
        errors = (found.gradients, found.dots, found.eigenvalues, found.activations, found.slopes)
        said = ["–" if error != error else f"{error:.0e}" for error in errors]
        return [f"| {name} | {len(found.layers)} | {found.share:.1%} | {' | '.join(said)} | |"]
    told = as_told(found.refusal)
    once = [f"| {name} | {'| ' * 7}{' '.join(found.refusal.split())} |"]
    return once + (rows(f"{name}, as told", replace(case, layers=told)) if told and case.layers is None else [])


def main(names: list[str]) -> None:
    """Errors relative to the largest entry, of dot products to the two gradients' lengths; float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, build in (CATALOGUE | layouts.RIGHT | layouts.MIXED).items():
        if not names or name in names:
            print(*rows(name, build()), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
