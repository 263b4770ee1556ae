"""Models of text, tiny and from their configurations: encoders, decoders, adapters on one of them, and T5."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
from alone import Case, Catalogue, class_loss, enter, token_loss
from tiny import (
    CLASSES,
    CONTINUED,
    IDS,
    LENGTHS,
    PAD,
    SEQUENCE,
    SIZES,
    VOCABULARY,
    WIDE,
    causal,
    classes,
    classifier,
    continued,
    draw,
    seeded,
    sequences,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inflib import CrossEntropy, NextToken

TEXT: Catalogue = {}

# --- encoders ---------------------------------------------------------------------------------------------------------


@enter(TEXT, "BERT")
def bert() -> Case:
    return classifier(transformers.BertForSequenceClassification, transformers.BertConfig(**WIDE, num_labels=CLASSES))


@enter(TEXT, "BERT, tokens")
def bert_tokens() -> Case:
    return Case(
        seeded(transformers.BertForTokenClassification, transformers.BertConfig(**WIDE, num_labels=VOCABULARY)),
        NextToken(), token_loss, continued(), CONTINUED,
    )  # fmt: skip


@enter(TEXT, "RoBERTa")
def roberta() -> Case:
    return classifier(
        transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**WIDE, num_labels=CLASSES)
    )


@enter(TEXT, "ALBERT")
def albert() -> Case:
    config = transformers.AlbertConfig(**WIDE, embedding_size=8, num_labels=CLASSES)
    return classifier(transformers.AlbertForSequenceClassification, config)


@enter(TEXT, "DistilBERT")
def distilbert() -> Case:
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
    config = transformers.DistilBertConfig(
        **sizes, pad_token_id=PAD, max_position_embeddings=32, initializer_range=0.3, num_labels=CLASSES
    )
    return classifier(transformers.DistilBertForSequenceClassification, config)


@enter(TEXT, "DeBERTa-v2")
def deberta() -> Case:
    config = transformers.DebertaV2Config(
        **WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=False,
        num_labels=CLASSES, pooler_hidden_size=16,
    )  # fmt: skip
    return classifier(transformers.DebertaV2ForSequenceClassification, config)


@enter(TEXT, "DeBERTa-v2, one key")
def deberta_shared() -> Case:
    """Its key and query matrices read the positions' embeddings too, (1, 2k, d), whatever the batch."""
    config = transformers.DebertaV2Config(
        **WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, share_att_key=True,
        num_labels=CLASSES, pooler_hidden_size=16,
    )  # fmt: skip
    return classifier(transformers.DebertaV2ForSequenceClassification, config)


@enter(TEXT, "multiple choice")
def multiple_choice() -> Case:
    g, found = draw(), []
    for lengths in LENGTHS:  # a question's choices have one length
        inputs = sequences(tuple(n for n in lengths for _ in range(CLASSES)), g)
        found.append(({k: x.unflatten(0, (-1, CLASSES)) for k, x in inputs.items()}, classes(len(lengths), g)))
    model = seeded(transformers.BertForMultipleChoice, transformers.BertConfig(**WIDE))
    return Case(model, CrossEntropy(), class_loss, found, SEQUENCE)


# --- decoders ---------------------------------------------------------------------------------------------------------


@enter(TEXT, "GPT-2")
def gpt2() -> Case:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_inner=24, n_layer=2, n_head=2, initializer_range=0.3, **IDS
    )
    return causal(transformers.GPT2LMHeadModel, config)


@enter(TEXT, "GPT-NeoX")
def gpt_neox() -> Case:
    return causal(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**WIDE))


@enter(TEXT, "OPT")
def opt() -> Case:
    config = transformers.OPTConfig(
        **SIZES, **IDS, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.3
    )
    return causal(transformers.OPTForCausalLM, config)


def grouped_heads() -> dict[str, Any]:
    return {**WIDE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "tie_word_embeddings": False}


@enter(TEXT, "Qwen2")
def qwen2() -> Case:
    return causal(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**grouped_heads()))


@enter(TEXT, "Gemma")
def gemma() -> Case:
    return causal(transformers.GemmaForCausalLM, transformers.GemmaConfig(**grouped_heads()))


@enter(TEXT, "Falcon")
def falcon() -> Case:
    config = transformers.FalconConfig(**SIZES, **IDS, ffn_hidden_size=24, initializer_range=0.3)
    return causal(transformers.FalconForCausalLM, config)


@enter(TEXT, "Llama")
def llama() -> Case:
    return causal(transformers.LlamaForCausalLM, transformers.LlamaConfig(**grouped_heads()))


@enter(TEXT, "Llama, padded left")
def llama_left() -> Case:
    return causal(transformers.LlamaForCausalLM, transformers.LlamaConfig(**grouped_heads()), "left")


@enter(TEXT, "Llama, checkpointed")
def llama_checkpointed() -> Case:
    """Hugging Face's switch, which works in train mode only; there is no dropout."""
    case = llama()
    case.model.gradient_checkpointing_enable()
    case.model.train()
    return case


@enter(TEXT, "Mixtral")
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


@enter(TEXT, "Mamba")
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


@enter(TEXT, "LoRA")
def lora() -> Case:
    return adapted(llama().model)


@enter(TEXT, "LoRA, int8 base")
def lora_int8() -> Case:
    base = llama().model
    for name, module in list(base.named_modules()):
        if name.split(".")[-1].endswith("_proj"):
            base.set_submodule(name, Int8Linear(module))
    return adapted(base)


@enter(TEXT, "DoRA")
def dora() -> Case:
    """Its adapters are also called on the unit matrix, for a norm through which no gradient goes."""
    return adapted(llama().model, use_dora=True)


# --- encoder and decoder ------------------------------------------------------------------------------------------------


@enter(TEXT, "T5")
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
