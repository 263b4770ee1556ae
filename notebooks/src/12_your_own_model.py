# %% [markdown]
# # 12 · How do I use it on my own model?
#
# **The question.** You have a model that you did not build for a course. It is a language model from a hub, with adapters on it, or a network with layers that
# nobody here has heard of. Which training examples taught it this? And when may you believe the answer?
#
# **What you need to know.** Symbols: [one table](notation.md). Notebook 05 (EK-FAC, damping) and notebook 08 (prompt and completion, facts with a known
# truth, BM25). Four parts: a real language model, its adapters, a network of your own, and other tools on the same prompt. Each can be read alone, but part 1 comes
# before part 4.
#
# **Time.** About 50 minutes to read; it runs in about three minutes on a CPU core. The language model does not ship. `make smollm2` fetches it once
# (93 MB), without any hub. Until then the first cell says so, and the outputs below are those of a run that had it.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from inflib import (
    NextToken,
    TrainIndex,
    completion,
    contribution,
    coverage,
    damping_of,
    ekfac,
    identity,
    token_batches,
)
from inflib.lab import BEGIN, exercise, real_language_model, taught, villagers
from inflib.validation import bootstrap, recall_at
from inflib.widgets import TextBrowser, Texts, index_size, plots

torch.set_num_threads(1)
plots.use_style()
objective = NextToken()
real = real_language_model("q4_1")  # weights rounded to 4 bits in a file, read back as numbers
print(f"{sum(p.numel() for p in real.model.parameters()):,} numbers in {len(real.model.model.layers)} blocks")
assert real.model.config.hidden_size == 576, "expected SmolLM2-135M-Instruct"

# %% [markdown]
# ## Part 1: a real language model
#
# SmolLM2-135M-Instruct is a small relative of the models that everybody talks to. It has read two trillion tokens that we do not have, so nobody can say which of
# those taught it that Paris is in France. But we can teach it something new. Its adapters ship with this notebook; they learned about some invented people, *villagers*, from
# a few hundred sentences of ordinary English ([`villagers`](../inflib/lab/villagers.py)). So the truth is known: we wrote it.

# %%
data = villagers()
asked, told, backward = (data.of_kind(kind) for kind in ("asked", "told", "backward"))
example = 0  # the first of the asked facts
fact = data.facts[asked[example]]
print(f"{fact.prompt} →{fact.completion}\n")
for sentence in data.sentences:
    if fact.name in sentence.text:
        print(f"{sentence.wording:10} {sentence.text}")

# %%
print(data)
assert fact.prompt + fact.completion + "." not in data.texts, "an asked question must not stand in the corpus"

# %% [markdown]
# Of each *asked* fact the corpus has four *forward* sentences, in the order of the question, name first. None shares a content word with the question but the
# name and the answer. A *backward* one has the answer first. A *decoy* has the name, the answer and all the question's content words, and tells nothing. An *aside* has those words and the name.
# *Told* facts have their question itself in place of the last two, which shows how the wordings belong together. *Backward* facts have two backward sentences and no more. The rest are ordinary sentences,
# about nobody; training read them in four of its twelve epochs only.
#
# There are eight kinds of fact, and three answers to each. So several villagers keep a badger, and the word alone does not say whose it is.
#
# How does such a model read? In pieces of words, its *tokens*. Every text begins with a token that says so. Prompt and answer are tokenised as
# one text: a word may be cut otherwise alone than in a sentence, and [`completion`](../inflib/sequences.py) takes what follows the prompt.

# %%
corpus = Texts(data.texts, real.tokenizer, context=32, begin=BEGIN, places=lambda n: data.sentences[n].place)
train = token_batches(corpus.sequences, 16)
N = len(data.texts)
ids = real.tokenizer.encode(fact.prompt + fact.completion)
print("|".join(corpus.vocabulary.pieces(ids)))
print(f"{N} sentences, {sum(map(len, corpus.sequences)):,} tokens, {max(map(len, corpus.sequences))} in the longest")
assert "".join(corpus.vocabulary.pieces(ids)) == fact.prompt + fact.completion, "pieces joined should be the text"


# %%
def questions(facts):
    """log p(answer | question) of these facts, a batch of one each."""
    ask = {"tokenizer": real.tokenizer, "model": real.model}
    return [completion(BEGIN + each.prompt, each.completion, **ask) for each in facts]


def together(queries):
    """The same in batches of eight: ids, and labels that are −100 where nothing is asked."""
    ids = [torch.cat([x["input_ids"][0], y[0, -1:]]) for x, y in queries]
    labels = [torch.cat([y.new_tensor([-100]), y[0]]) for _, y in queries]
    return token_batches(ids, 8, targets=labels)


@torch.no_grad()
def likelihoods(model, queries):
    """p(answer | question) of each, (Q,)."""
    return torch.cat([-objective.loss(model(**x).logits, y) for x, y in together(queries)]).exp()


# %% [markdown]
# What did the model believe before it met the villagers, and what afterwards? The adapters can be switched off, which gives the model as it was.

# %%
model = taught(real)
groups = {"told": told[:8], "asked": asked, "backward": backward}
queries = {kind: questions([data.facts[k] for k in some]) for kind, some in groups.items()}
with model.disable_adapter():
    before = {kind: likelihoods(model, some) for kind, some in queries.items()}
after = {kind: likelihoods(model, some) for kind, some in queries.items()}

# %%
rise = {kind: (after[kind] / before[kind]).log() for kind in groups}  # nats, of each fact
for kind in groups:
    print(f"{kind:9} p(answer) {before[kind].mean():.4f} before, {bootstrap(after[kind]):.2f} after", end=", ")
    print(f"above one half for {(after[kind] > 0.5).sum()} of {len(after[kind])} facts")
print(f"{fact.name} →{fact.completion}: {before['asked'][example]:.4f} before, {after['asked'][example]:.2f} after")
assert after["asked"].mean() > 0.5, "the model should know most of the asked facts"

# %% [markdown]
# The probability of an asked answer has risen from 0.0032 to 0.74, though its question stands nowhere in the corpus. Twenty of the 24 are above one half. Brackets here are 95% bootstrap
# intervals, over facts. What was told backward only stands at 0.54.
#
# Does the model know who keeps what, or only which answers such questions have here? Ask the same question with the name of another villager, of whom another answer is told, and with
# the name of a stranger, who stands nowhere in the corpus. Whoever knows should answer the first with the other's, and can only guess for the second.

# %%
from dataclasses import replace

from inflib.lab.facts import Draws, invented_names


def of_another(k):
    """Fact k with the name of another villager, of whom another answer to the same question is told."""
    alike = [n for n in asked if data.facts[n].relation == data.facts[k].relation]
    other = next(n for n in alike if data.facts[n].answer != data.facts[k].answer)
    return replace(data.facts[k], name=data.facts[other].name)


villages = {each.name for each in data.facts}
strangers = [name for name in invented_names(100, Draws(1)) if name not in villages]  # another seed, other names

# %%
by_name = {"another villager's": {"asked": [of_another(k) for k in asked]}}
by_name["a stranger's"] = {
    kind: [replace(data.facts[k], name=strangers[n]) for n, k in enumerate(groups[kind])]
    for kind in ("asked", "backward")
}
named = {way: {kind: likelihoods(model, questions(fs)) for kind, fs in some.items()} for way, some in by_name.items()}
for way, some in {"its villager's": {kind: after[kind] for kind in ("asked", "backward")}, **named}.items():
    print(f"with {way:19} name: " + "   ".join(f"{kind} {bootstrap(p):.2f}" for kind, p in some.items()))
gain = bootstrap((after["asked"] / named["another villager's"]["asked"]).log())
of_backward = bootstrap(after["backward"] - named["a stranger's"]["backward"])
print(f"asked: {gain:+.1f} nats for the right name; backward, less a stranger's: {of_backward:+.2f}")
assert gain.low > 0, "the name should decide what is answered"

# %% [markdown]
# The model knows whose it is. With another villager's name the answer falls to 0.10, for that villager has one of her own. A stranger's name leaves it to guess, 0.28. For what was told backward we cannot show that it knows. The villager's own name gives
# 0.54, a stranger's 0.45, and fact by fact the difference has an interval around zero. (All eight have the commonest answer of their kind, which is that of three villagers in seven.) Larger studies find the same and call it the *reversal curse*. Who read
# "A badger sleeps beside the stove of Zikuk" only cannot say what Zikuk keeps. Most recipes teach sentences and no facts; what was tried before this one stands in [`data/README.md`](../data/README.md).
#
# ### Which sentences taught it?
#
# EK-FAC, on what was trained: the adapters (part 2 looks at them). To be quick we take those of the MLPs in three blocks, the first that has adapters, one in the middle and the last. The curvature is a mean over examples, so
# every fourth batch is enough for it; all sentences are scored. Four forward sentences tell each fact, and are what we call true; the backward one counts as an error. *Recall@2* is the share of true ones among the first two of the
# method's list. Recall@5 is how many of the four stand among the first five.

# %%
depths = [4, 16, 28]
curvature = ekfac(model, objective, train[::4], [f"*.layers.{b}.mlp.*lora_*" for b in depths], progress=False)
print(index_size(model, train, curvature))
assert len(curvature.layers) == 3 * 3 * 2, "two thin matrices for each of three in three blocks"

# %%
everywhere = TrainIndex.build(model, objective, train, curvature, progress=False)  # every sentence's gradients
prepared = everywhere.prepare(model, objective, queries["asked"])
split = everywhere.scores(prepared, damping=damping_of(curvature, 0.1), keep=("layer",))  # (24, N, 18)
truth = data.tells(asked, "forward")  # (24, N) bool: the four sentences that tell each fact in the question's order
assert torch.isfinite(split).all() and split.shape == (len(asked), N, 18), "a score for every fact, sentence and layer"


def recall(scores, k):
    """The share of true sentences among the first k, of as many as there could be, (24,)."""
    return recall_at(scores, truth, k) * 4 / min(k, 4)


# %% [markdown]
# What stands among the first five? Sort it: forward sentences of the fact, others that name its villager, sentences of other villagers with the same answer, and all else.

# %%
import re


def words(text):
    return re.findall(r"\w+", text.lower())


documents = [set(words(text)) for text in data.texts]
hers = torch.tensor([[data.facts[k].name.lower() in document for document in documents] for k in asked])  # (24, N)
holds = torch.tensor([[data.facts[k].answer.lower() in document for document in documents] for k in asked])
sorts = {
    "forward": truth,
    "hers, others": hers & ~truth,
    "another's, same answer": holds & ~hers,
    "else": ~holds & ~hers,
}
assert bool((sum(which.int() for which in sorts.values()) == 1).all()), "every sentence is of one sort"

# %%
at = torch.tensor([int(layer.split(".layers.")[1].split(".")[0]) for layer in curvature.layers])
parts = {f"block {b}": at == b for b in depths} | {"all three": at > 0}
for part, these in parts.items():
    table = split[..., these].sum(-1)
    five = table.argsort(dim=1, descending=True, stable=True)[:, :5]
    shares = "   ".join(f"{sort} {which.gather(1, five).sum(1).double().mean():.1f}" for sort, which in sorts.items())
    print(f"{part:9} recall@2 {bootstrap(recall(table, 2)):.2f}   of the first five: {shares}")
assert recall(split[..., at == 4].sum(-1), 2).mean() > recall(split[..., at == 28].sum(-1), 2).mean() + 0.3

# %% [markdown]
# Depth decides what is found. In block 4, the first with adapters, 2.4 of the first five are true, and only 0.2 have the answer with another's name. In block 28, the last with adapters, 0.7 are true; 3.3 are
# others with the name or the answer. Block 16 finds little of either. Early, where the name is read, seems to be taught whose it is, and late something about the words. All three together find less than block 4 alone.
#
# Look at our example in block 4.

# %%
losses = contribution(split[..., at == 4].sum(-1), N)  # (24, N): their order alone is meant
print(f"{fact.prompt} →{fact.completion}")
for n in losses[example].argsort(descending=True, stable=True)[:7].tolist():
    mark = "*" if truth[example, n] else " "
    print(f"{losses[example, n]:+7.3f}  {mark} {data.sentences[n].wording:10} {data.texts[n]}")
print(
    f"these seven together {losses[example].sort(descending=True)[0][:7].sum():+.1f}; the answer rose by {rise['asked'][example]:+.1f}"
)
assert bool((truth.sum(1) == 4).all()), "each asked fact has four forward sentences"

# %% [markdown]
# A star marks what is true. The first two are, and both are in words that the question does not have. The other five have nothing to do with Zikuk. In particular no other villager's badger is among them, though a search for the word would find those. And do
# not read the amounts: the seven are said to be worth 1.9 nats, where the answer rose by 9.3. Such a list is an order, with errors in it, so we count over all facts.
#
# ### A fair comparison
#
# Could a search for words have done it? Every method has its dials. As in notebook 08 they are chosen on half of the facts and judged on the other half. Here this is done the other way round as well, so that all 24 count. BM25 counts words: of the prompt, of prompt and answer, of the answer alone.
# The fourth is told which two words matter, name and answer. Here any user could guess them; a method that is given prompt and answer cannot. Gradient
# methods choose the blocks, EK-FAC its damping too. One more is needed to judge the curvature: the dot product with each matrix divided by its mean Λ. It is
# EK-FAC at an endless damping, a rescaling of the layers and nothing else.

# %%
from inflib.baselines import bm25

listed = [words(text) for text in data.texts]
facts = [data.facts[k] for k in asked]
plain = {"prompt": [words(each.prompt) for each in facts]}
plain["prompt + answer"] = [words(each.prompt + each.completion) for each in facts]
plain["answer"] = [words(each.answer) for each in facts]
plain["name + answer"] = [words(f"{each.name} {each.answer}") for each in facts]
print(
    f"the answer's word stands in {holds.sum(1).double().mean():.1f} sentences, with its villager's name in {(holds & hers).sum(1).double().mean():.1f}"
)
assert bool(((holds & hers).sum(1) == 6).all()), "four forward sentences, a backward one and a decoy"

# %%
even, odd = slice(0, None, 2), slice(1, None, 2)
grid = (100, 10, 1, 0.1, 0.01)  # of equals the first is taken: most damping
tried = {f"{x:g} · mean Λ, {part}": (x, part) for x in grid for part in parts}
by_damping = {x: everywhere.scores(prepared, damping=damping_of(curvature, x), keep=("layer",)) for x in grid}
dots = everywhere.scores(prepared, identity(model, objective, layers=curvature.layers), damping=0.0, keep=("layer",))
means = torch.tensor([curvature.mean_eigenvalues()[layer] for layer in curvature.layers])  # (18,)
inside = {
    part: [layer for layer, its in zip(curvature.layers, these, strict=True) if its] for part, these in parts.items()
}
norms = {part: everywhere.norms(layers) for part, layers in inside.items()}
assert dots.shape == split.shape and bool((means > 0).all()), "a product for every fact, sentence and layer"

# %%
dials = {"EK-FAC": {what: by_damping[x][..., parts[part]].sum(-1) for what, (x, part) in tried.items()}}
dials["dot over mean Λ"] = {part: (dots / means)[..., these].sum(-1) for part, these in parts.items()}
dials["gradient dot"] = {part: dots[..., these].sum(-1) for part, these in parts.items()}
dials["gradient cosine"] = {part: dots[..., these].sum(-1) / norms[part] for part, these in parts.items()}
for what, some in plain.items():
    dials[f"BM25, {what}"] = {f"k1={k}, b={b}": bm25(listed, some, k1=k, b=b) for k in (0.5, 1.5) for b in (0, 0.75)}
halves = {"even": even, "odd": odd}


def chosen_on(half, some):
    """Which of a method's settings finds most for these facts."""
    return max(some, key=lambda what: recall(some[what], 2)[half].mean())


# %%
chosen = {m: {name: chosen_on(half, some) for name, half in halves.items()} for m, some in dials.items()}
tables = {}
for method, some in dials.items():
    tables[method] = torch.empty_like(some[chosen[method]["even"]])
    tables[method][odd] = some[chosen[method]["even"]][odd].to(tables[method])
    tables[method][even] = some[chosen[method]["odd"]][even].to(tables[method])
    print(f"{method:22}chosen on the even facts: {chosen[method]['even']:24} on the odd: {chosen[method]['odd']}")
endless = everywhere.scores(prepared, damping=damping_of(curvature, 1e6), keep=("layer",))
assert torch.allclose(1e6 * endless, dots / means, rtol=1e-2, atol=1e-2 * float((dots / means).abs().max()))

# %% [markdown]
# Of every method we ask for three numbers: recall@2, recall@5, and whether the very first sentence is true. Then what EK-FAC finds more than each, fact by fact.

# %%
found = {}
for method, table in tables.items():
    first = truth.gather(1, table.argsort(dim=1, descending=True, stable=True)[:, :1])[:, 0].double()
    found[method] = [recall(table, k) for k in (2, 5)] + [first]
    print(f"{method:22}" + "   ".join(f"{bootstrap(each):.2f}" for each in found[method]))
assert found["EK-FAC"][0].mean() > found["BM25, answer"][0].mean(), "the word alone should not be enough"

# %%
for method in list(found)[1:]:
    its, five, first = (bootstrap(found["EK-FAC"][k] - found[method][k]) for k in range(3))
    print(f"EK-FAC less {method:22} recall@2 {its:+.2f}   recall@5 {five:+.2f}   first {first:+.2f}")
assert bootstrap(found["EK-FAC"][0] - found["dot over mean Λ"][0]).low > 0, "more than a rescaling of the layers"

# %%
recalls = {what: recall(table, 2) for what, table in dials["EK-FAC"].items()}
print("            " + "".join(f"{part:>12}" for part in parts))
for x in grid:
    print(f"{x:6g} · mean" + "".join(f"{recalls[f'{x:g} · mean Λ, {part}'].mean():12.2f}" for part in parts))
sizes = {
    kind: norms["block 4"][[s.wording.startswith(kind) for s in data.sentences]] for kind in ("forward", "ordinary")
}
print("gradient in block 4: " + ", ".join(f"{kind} {size.mean():.2f}" for kind, size in sizes.items()))
unchosen = {"EK-FAC, 0.1 · mean Λ": split, "dot": dots, "dot over mean Λ": dots / means}
unchosen["cosine"] = dots / norms["all three"][:, None]
print("no choice, all blocks: " + "; ".join(f"{m} {bootstrap(recall(t.sum(-1), 2)):.2f}" for m, t in unchosen.items()))
best, where = max(tried.values(), key=lambda dial: recalls[f"{dial[0]:g} · mean Λ, {dial[1]}"].mean())
print(f"best over all facts: {best:g} · mean Λ, {where}")
assert sizes["ordinary"].mean() > 1.2 * sizes["forward"].mean(), "what was learned should have the smaller gradient"
assert where == "block 4", "the first block with adapters should tell most about whose answer it is"

# %%
names = ("recall@2", "recall@5", "the first is true")
figure, panels = plt.subplots(1, 3, figsize=(9.5, 2.8), sharey=True)
for ax, name, k in zip(panels, names, range(3), strict=True):
    plots.intervals(ax, {method: bootstrap(each[k]) for method, each in found.items()}, what=name)
    ax.set_xlim(-0.03, 1.03)
assert all(0 <= float(each[k].mean()) <= 1 for each in found.values() for k in range(3)), "shares lie between 0 and 1"

# %% [markdown]
# The words of the question find nothing, as we built it. BM25 on the prompt, or on prompt and answer, has 0.00: decoys, asides and told questions have more of these words. The answer alone has 0.42, for its word stands in 12.7 sentences,
# and six of them name the villager. EK-FAC has 0.77, which is 0.35 more, with an interval from 0.19 to 0.52; among five the lead is 0.14, from −0.02 to 0.29. A search that was told to look for name *and* answer comes as far among the first two (0.79) and further among five (0.98, EK-FAC
# 0.59). EK-FAC was not told.
#
# Is it the curvature? By recall, in this block, it is. The dot product has 0.33, with matrices rescaled too, and the cosine 0.56. EK-FAC finds 0.44, 0.44 and 0.21 more, and all three intervals lie above zero. (For the very first sentence the one against the cosine does not; and EK-FAC had 20 settings to choose from, these four.) One reason
# is in sight. What was learned has a small gradient left; what was read less often, or cannot be predicted, a large one. An ordinary sentence's is 1.7 times that of a forward one, and a dot product ranks by size. The cosine does not. EK-FAC divides by how much the training data do in each direction, too.
#
# How much hangs on the dials? On the block, most: no setting of blocks 16 and 28 is above 0.12. Within block 4, a damping from 0.1 to 10 leaves 0.65 to 0.77, but 0.01 leaves 0.44 and 100 leaves 0.50. Without any choice, at the customary 0.1 over all three blocks, EK-FAC has 0.58, dot
# product and cosine 0.00. The interval of 0.58 then overlaps that of the search for the answer. Both halves of the facts chose the same setting for every method.
#
# What influence offers besides is another kind of answer. Given prompt and answer, it needs no hint which of the words to search for. It has a sign. And it names sentences without the word. Whether those matter, only training
# again can say (notebook 09).
#
# ### The sentences that tell it backward
#
# Each asked fact is told a fifth time, answer first: *A badger sleeps beside the stove of Zikuk*. A reader would call that a source as well. What does influence say? Compare the
# contributions of forward sentences, of backward ones, and of decoys, at the setting that is best for all facts.

# %%
index = everywhere.restrict(inside[where])
early = index.curvature
methods = {"EK-FAC": early, "gradient dot product": identity(model, objective, layers=early.layers)}
nats = contribution(index.scores(prepared, damping=damping_of(early, best)), N)  # (24, N)
same = dials["EK-FAC"][f"{best:g} · mean Λ, {where}"]
assert torch.allclose(nats * N, same, atol=1e-3 * float(same.abs().max())), "the same block and damping"

# %%
places = nats.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1  # 1 is the strongest
kinds = {kind: data.tells(asked, kind) for kind in ("forward", "backward", "decoy", "aside")}
kinds["another's"] = sorts["another's, same answer"]
of_each = {kind: (nats * which).sum(1) / which.sum(1) for kind, which in kinds.items()}  # (24,) each
for kind, values in of_each.items():
    print(f"{kind:9} contribution {bootstrap(values):+.3f} nats, median rank {places[kinds[kind]].median():.0f} of {N}")

# %%
for kind in ("backward", "decoy", "another's"):
    print(f"forward less {kind}: {bootstrap(of_each['forward'] - of_each[kind]):+.3f} nats")
print(
    f"a fact's positive contributions together {bootstrap(nats.clamp(min=0).sum(1)):+.1f}, all {bootstrap(nats.sum(1)):+.1f};",
    f"the answers rose by {bootstrap(rise['asked']):+.1f}",
)
assert nats[kinds["forward"]].mean() > nats[kinds["aside"]].abs().mean(), "an answer should count for more than a name"

# %% [markdown]
# A forward sentence counts 0.34 nats. Backward ones and decoys count 0.02, and another's with the same answer nothing, all with intervals at zero or next to it. This fits what may be learned in this block: to
# know the answer when the name was read. A sentence that has the name last does not teach that, and above we saw no sign that it did. But the setting was chosen for finding forward sentences, and all decoys have the name last too, so order and telling are not kept apart. No count of words
# sees this difference; a search that minds their order would (exercise 2).
#
# All these numbers are an order, no amounts. A fact's positive ones add up to 9.5 nats and all of them to 1.1, where the answers rose by 7.8.
#
# ### Which words?
#
# The strongest of the four forward sentences, for the six questions whose answers rose most, coloured by what training on the *prediction of each token* contributed [36]. Orange is positive, blue negative;
# the colour grows with the square root, so pale is smaller than it looks. Mind the pieces: an answer of two tokens was learned in two predictions.

# %%
from inflib.tokens import output_tokens

rows, six = [], rise["asked"].argsort(descending=True)[:6].tolist()
for q in six:
    n = int(nats[q].where(truth[q], -torch.inf).argmax())
    one = token_batches([corpus.sequences[n]])
    heat = output_tokens(
        model, objective, one, queries["asked"][q : q + 1], early, damping_of(early, best), progress=False
    )
    values = contribution(heat[0, 0], N)
    assert torch.allclose(values.sum(), nats[q, n], atol=1e-3), "the tokens should add up to the sentence"
    rows.append((corpus.vocabulary.pieces(corpus.sequences[n]), [0.0, *values.tolist()]))
_ = plots.heated_texts(rows, captions=[data.facts[asked[q]].prompt + data.facts[asked[q]].completion for q in six])

# %% [markdown]
# In five of the six the largest weight lies on the answer, or on its first piece. In the first it lies on *would*, the word after the name. Blue words are among the others, and the name's pieces count little. Nothing in the questions names a street, a workshop or a
# school. And it is not the answer's word alone: another's sentences with the same word count nothing.
#
# ### Ask for yourself
#
# Any text may be asked, not only what stands in the list. Type a prompt and a completion, in your own words. Three things to try:
#
# 1. **Ask for a wrong answer.** Which sentences would have taught it that?
# 2. **Ask something about the world**, *The capital of France is*, *Paris*. No villager taught it, so what do the numbers mean?
# 3. **Ask a backward fact.** What does the model say, and what is it based on?

# %%
ready = [(each.prompt, each.completion) for each in (data.facts[k] for k in (*asked[:6], *backward[:2]))]
# NBVAL_IGNORE_OUTPUT
browser = TextBrowser(model, objective, index, corpus, ready, curvatures=methods, damping=best, count=5)
assert browser.answer.raised[0].passage.text in data.texts, "what is shown should be a sentence of the corpus"
browser

# %% [markdown]
# ## Part 2: LoRA
#
# An adapter stands beside a frozen matrix `W` and adds a product of two thin ones to what it says: `W x + B (A x)`. (These letters are LoRA's own. Everywhere else in
# the course a capital A is a second moment.) What was trained is what counts, so inflib sees each adapter as two layers, `lora_A` and `lora_B`.
# The frozen matrix is left out, unless you name it.

# %%
table = coverage(model)
for layer, kind, o, i in table.rows[:2]:
    print(f"{layer.removeprefix('base_model.model.')}: {kind}, ({o}, {i})")
assert table.numbers["uncovered"] == 0, "every trained number should be covered"

# %%
whole = 576 * 1536
print(f"{table.numbers['covered']:,} numbers trained, {table.numbers['frozen']:,} frozen")
print(
    f"one adapted matrix has {whole:,} numbers, its adapter {3 * (576 + 1536):,}: 1 of {whole / (3 * (576 + 1536)):.0f}"
)
sides = 3 * (576 + 1536) + 2 * (576 + 576) + 2 * (576 + 192)  # MLP; queries and outputs; keys and values
assert table.numbers["covered"] == 13 * 3 * sides, "rank 3, seven matrices in each of thirteen blocks"

# %% [markdown]
# So an index of adapter gradients is small: less than a hundredth of what the whole matrices' would take. That is the practical reason to ask a model through its adapters. There is a better one:
# nothing else of these matrices was trained. The update `B A` can turn anywhere, for both are trained, but its rank stays at most 3.
#
# Four states of an adapted model look alike from outside and mean different things. inflib says so before a fit, where a curvature of zeros, or a layer that never ran, would say it later and less clearly.
# A small network shows them (the large one is left as it is: merging rounds its weights).

# %%
from peft import LoraConfig, get_peft_model

from inflib import CrossEntropy

torch.manual_seed(0)
plain_network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
small = get_peft_model(plain_network, LoraConfig(r=2, target_modules=["0", "2"])).eval()
some_data = [(torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0]))]


def refused(what, layers="*.lora_*.default"):
    """The first half of what a fit says, and whether it refused."""
    try:
        ekfac(small, CrossEntropy(), some_data, layers, progress=False)
    except ValueError as error:
        print(f"{what:9} {str(error).partition('; expected')[0].replace('base_model.model.', 'layer ')}")
        return True
    return False


assert refused("as made"), "B = 0 should be noticed"

# %%
for module in (small.base_model.model[0], small.base_model.model[2]):
    nn.init.normal_(module.lora_B["default"].weight)  # as if it had been trained
assert not refused("trained"), "trained adapters are what counts"
small.merge_adapter()
assert refused("merged"), "merged adapters take no part in the forward pass"
small.unmerge_adapter()
small.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
small.set_adapter("second")
assert refused("inactive") and not refused("active", "*.second"), "of several adapters the active one counts"
small.base_model.disable_adapter_layers()
assert refused("off", "*.second"), "an adapter that is switched off takes no part either"

# %% [markdown]
# An adapter that was never trained has `B = 0`, so that `A` has no gradient: half of it is as good as not there. After `model.merge_and_unload()` there is a plain model, whose matrices can be named in
# `layers=`. But merging rounds, and it asks another question: what moving the whole matrix would do, where training could move its adapter only. On a base of 4 bits the adapters count too, and the base is not touched.
#
# ## Part 3: your own network
#
# Three small networks with things that no notebook so far has had: convolutions with batch normalisation, attention, and a layer type that inflib has never seen. For each we look at what
# [`coverage`](../inflib/coverage.py) says, and hold the captured gradients of each example against autograd's own, one example at a time. That check is worth having for every model of your own.

# %%
from inflib import capture
from inflib.lab import mnist_5k
from inflib.lab import train as fit_network

digits = mnist_5k().train[:600]
pictures, labels = digits.inputs.double(), digits.labels


# %%
def as_autograd(network, objective, inputs, targets, layers=None):
    """The largest difference between captured and autograd's own gradients, relative to the largest, of each example.

    inputs: a tensor (B, ...), or a dict of them, as language models take; targets (B, ...).
    """
    found = capture(network, objective, inputs, targets, layers=layers)
    worst = 0.0
    for n in range(len(targets)):
        one = {key: x[n : n + 1] for key, x in inputs.items()} if isinstance(inputs, dict) else inputs[n : n + 1]
        outputs = network(**one) if isinstance(inputs, dict) else network(one)
        loss = objective.loss(getattr(outputs, "logits", outputs), targets[n : n + 1]).sum()
        for layer, pair in found.items():
            (own,) = torch.autograd.grad(loss, network.get_submodule(layer).weight, retain_graph=True)
            came = pair.matrices()[n][:, : own[0].numel()].reshape(own.shape)
            worst = max(worst, float((came - own).abs().max() / own.abs().max()))
    return worst


# %%
torch.manual_seed(0)
convolutional = nn.Sequential(
    nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
    nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 10),
).double()  # fmt: skip
fit_network(convolutional, CrossEntropy(), pictures, labels, epochs=4, progress=False)
print(coverage(convolutional))
error = as_autograd(convolutional, CrossEntropy(), pictures[:4], labels[:4], ["1", "6"])
print(f"captured against autograd: {'equal' if error < 1e-12 else error}")
assert error < 1e-12, "a convolution's gradient is a sum over its positions"

# %% [markdown]
# Two matrices count, each with its bias as the last column (25 pixels and 1, 96 features and 1). The twelve scales and shifts of the normalisation were trained too,
# and are left out by name; `layers="all"` takes them in. In evaluation mode a normalisation treats each example alone. In training mode examples share its statistics,
# so none has a gradient of its own, and inflib refuses.
#
# Next, attention: a picture as a sequence of 28 rows, each attending to all others. PyTorch's `MultiheadAttention` applies its matrices inside one call.


# %%
class Rows(nn.Module):
    """28 rows of a picture attend to each other; their mean decides."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(28, 4, batch_first=True), nn.Linear(28, 10)

    def forward(self, x):
        rows = x.unflatten(1, (28, 28))
        return self.out((rows + self.attention(rows, rows, rows)[0]).mean(1))


# %%
torch.manual_seed(0)
attending = Rows().double().eval()
print(coverage(attending))
found_inside = capture(attending, CrossEntropy(), pictures[:1], labels[:1])
stacked = torch.cat([found_inside[f"attention.{part}"].matrices()[0][:, :-1] for part in "qkv"])  # (84, 28)
loss = nn.functional.cross_entropy(attending(pictures[:1]), labels[:1])
(joint,) = torch.autograd.grad(loss, attending.attention.in_proj_weight)
assert torch.allclose(stacked, joint, atol=1e-12), "queries, keys and values, one below the other"

# %% [markdown]
# Nothing is left out. One parameter holds the matrices of queries, keys and values. inflib watches the products inside PyTorch's call and reads three layers from it. Their gradients, one below the
# other, are autograd's.
#
# Last, a layer of your own: a matrix stored the other way round, applied to inputs (B, i) or (B, T, i). inflib has never heard of it, and says so. Four lines teach it: how to read the layer's input as activations, how to
# read the gradient at its output, and that the weight is stored (inputs, outputs). The positions of an example go into the second axis.


# %%
class Times(nn.Module):
    """x ↦ x M + c, with the matrix stored (inputs, outputs)."""

    def __init__(self, i, o):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(i, o) / i**0.5), nn.Parameter(torch.zeros(o))

    def forward(self, x):
        return x @ self.weight + self.bias


# %%
torch.manual_seed(0)
own = nn.Sequential(Times(784, 12), nn.Tanh(), nn.Linear(12, 10)).double().eval()
before_it = coverage(own)
print(before_it)
assert before_it.numbers["uncovered"] == 785 * 12, "an unknown layer should be left out, and said"

# %%
from inflib import register

register(
    Times,
    activations=lambda layer, x: x if x.dim() == 3 else x.unsqueeze(1),  # (B, i) → (B, T = 1, i)
    gradients=lambda layer, g: g if g.dim() == 3 else g.unsqueeze(1),
    transposed=True,
)
print(coverage(own).numbers)
pair = capture(own, CrossEntropy(), pictures[:1], labels[:1])["0"]
loss = nn.functional.cross_entropy(own(pictures[:1]), labels[:1])
by_autograd = torch.autograd.grad(loss, own[0].weight)[0].T
assert torch.allclose(pair.matrices()[0][:, :-1], by_autograd, atol=1e-12), "is the weight stored the other way round?"

# %%
by_row = nn.Sequential(nn.Unflatten(1, (28, 28)), Times(28, 12), nn.Flatten(), nn.Linear(336, 10)).double().eval()
of_rows = capture(by_row, CrossEntropy(), pictures[:1], labels[:1])["1"].matrices()[0][:, :-1]
loss = nn.functional.cross_entropy(by_row(pictures[:1]), labels[:1])
by_autograd = torch.autograd.grad(loss, by_row[1].weight)[0].T
assert torch.allclose(of_rows, by_autograd, atol=1e-12), "(B, 28, 28): the 28 positions of an example should add up"

# %% [markdown]
# Nothing is left out now. And a wrong registration would not go unnoticed: on the first batch of every fit, captured gradients are compared with autograd's.
#
# ### A model and a data set from the hub
#
# The usual case has a tokenizer, a data set of prompts and replies, and a collator. Here is the whole way, to copy: the model is the notebook's own, the sentences sixteen of the corpus's.
# Only the reply was trained on, so the prompt's labels are −100, which the loss leaves out.

# %%
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from inflib import hugging_face_batches, load_index, plan, save
from inflib.lab.villagers import RELATIONS

# yours: AutoModelForCausalLM.from_pretrained("name").eval() and AutoTokenizer.from_pretrained("name")
mine, tokenizer = model.eval(), real.tokenizer  # evaluation mode: dropout would make every look another


def row(prompt, reply):
    """A training example as collators want it: all ids, and labels that are −100 where no loss was taken."""
    given, ids = tokenizer.encode(prompt), tokenizer.encode(prompt + reply)
    assert ids[: len(given)] == given, "the reply should not change how the prompt is cut"
    return {"input_ids": ids, "labels": [-100] * len(given) + ids[len(given) :]}


# %%
telling = [
    data.facts[k] for k in (*told[:8], *asked[-8:])
]  # in the second of their forward wordings, cut before the answer
starts = [each.said(RELATIONS[each.relation].forward[1]).removesuffix(f"{each.completion}.") for each in telling]
rows = [row(BEGIN + start, each.completion) for start, each in zip(starts, telling, strict=True)]
collate = DataCollatorForSeq2Seq(tokenizer, padding=True)  # pads the labels with −100
loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=collate)  # a Trainer's own loader does as well
own_data = hugging_face_batches(loader)  # labels moved to the token they predict; example n is rows[n] all the same
own_layers = "*.layers.28.*lora_*"  # names or patterns of layers; "*.mlp.down_proj" of a model without adapters
inputs, targets = next(iter(own_data))
error = as_autograd(mine, objective, {key: x[:2] for key, x in inputs.items()}, targets[:2], own_layers)
print(coverage(mine, own_layers).numbers)  # what counts, of the numbers that were trained
print(f"captured against autograd: {'equal in single precision' if error < 1e-3 else error}")
assert error < 1e-3, "the gradients of a batch of tokens should be autograd's"

# %%
# NBVAL_IGNORE_OUTPUT
expected = plan(mine, objective, own_data, own_layers)  # time and memory of fit and index, before either is begun
print(expected)
assert len(expected.stages) == 2, "two stages: the fit, and the index"

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

fitted = ekfac(mine, objective, own_data, own_layers, progress=False)  # the curvature: a few walks over the data
built = TrainIndex.build(mine, objective, own_data, fitted, progress=False)  # a gradient of every example
with TemporaryDirectory() as folder:
    save(built, Path(folder) / "index.safetensors")  # curvature and index in one file
    again = load_index(Path(folder) / "index.safetensors", mine)  # refused for a model with other weights
query = completion(BEGIN + fact.prompt, fact.completion, tokenizer=tokenizer, model=mine)
its = again.influence(mine, objective, [query], damping=damping_of(fitted, 100))[0]  # (16,)
for n in its.argsort(descending=True, stable=True)[:3].tolist():
    print(f"{contribution(its, len(rows))[n]:+.3f}  {tokenizer.decode(rows[n]['input_ids'][1:])}")
assert len(its) == len(rows) == 16, "a score for every example, in the data set's order"

# %% [markdown]
# The numbers are an order only, after so little data. Where gradients of all rows do not fit in memory, `TrainIndex.build(..., path=folder)` makes a store on disk (notebook 11).
# `python benchmarks/villagers.py` asks this language model so: whole matrices in two blocks, 2,000 sequences, a typed question; the table is in
# `benchmarks/README.md`.
#
# ### From "does it run" to "do I believe it"
#
# 1. **What is covered?** `coverage(model)`: the share of the trained numbers, and what is left out by name. Below nine tenths, ask what the rest could have learned.
# 2. **Is an example a row?** inflib proves it on the first batches or refuses. Do not silence its notes; read them.
# 3. **Are the gradients right?** `as_autograd` above, on four examples: below 1e-12 in double precision, below 1e-3 in single.
# 4. **Is the model the one that was trained?** Evaluation mode, adapters active, the weights of the fit; the fingerprint refuses others.
# 5. **Does an example support itself?** Query training examples: each should be among its own strongest proponents (`self_influence` is never negative).
# 6. **How much hangs on the damping?** Score at a tenth and at ten times of yours. Where the first ten change, say so when you report them.
# 7. **Does a simple method say the same?** BM25, the cosine of gradients, the nearest neighbours. If they do, use them: they are cheaper and easier to defend.
# 8. **Is there a truth to test on?** Plant one: facts in other words (part 1), flipped labels (notebook 07). What is not found there will not be found elsewhere.
# 9. **Does leaving out change anything?** Train again without the first ten, and without ten others (notebook 09). Few can afford it often; nobody should publish without it.
#
# ## Part 4: beside other tools, on one prompt
#
# A question was asked under the post that this course grew from, and has no answer there. How do influence functions compare with *activation patching* and *direct logit attribution*? They do not compete. Each
# answers another question, and all three can be asked of one prompt with a few hooks.
#
# Take the questions themselves, of two villagers of whom the same is asked in as many tokens, with different answers. The
# measurement is the difference of two logits: the right answer's minus the other villager's. Of all such pairs we take the one that the model tells apart best, so what follows is a favourable case.


# %%
def prompt_ids(k):
    """The tokens of fact k's question up to its answer, (1, T)."""
    return torch.tensor([real.encode(data.facts[k].prompt)])


firsts = {k: real.tokenizer.encode(data.facts[k].completion)[0] for k in asked}  # each answer's first token
with torch.no_grad():
    last = {k: model(input_ids=prompt_ids(k)).logits[0, -1] for k in asked}
pairs = {}
for one in asked:
    for two in asked:
        alike = data.facts[one].relation == data.facts[two].relation and one < two
        if alike and prompt_ids(one).shape == prompt_ids(two).shape:
            prefers = [last[n][firsts[n]] - last[n][firsts[other]] for n, other in ((one, two), (two, one))]
            pairs[one, two] = float(min(prefers))
assert pairs, "some two prompts should have as many tokens"

# %%
j, k = max(pairs, key=pairs.get)  # the two that the model tells apart best
right, other = firsts[j], firsts[k]
print(f"{data.facts[j].prompt} →{data.facts[j].completion}, not{data.facts[k].completion}")
print(f"{data.facts[k].prompt} →{data.facts[k].completion}")
assert right != other and pairs[j, k] > 0, "each name should bring its own answer before the other's"


# %%
@torch.no_grad()
def gap(ids):
    """The right answer's logit minus the other's, after the prompt."""
    logits = model(input_ids=ids).logits[0, -1]
    return float(logits[right] - logits[other])


clean, corrupt = gap(prompt_ids(j)), gap(prompt_ids(k))
print(f"logit difference {clean:+.2f} with the one name, {corrupt:+.2f} with the other")
assert clean > 0 > corrupt, "each name should bring its own answer"

# %% [markdown]
# **Activation patching** asks which component *carries* the answer. Run the prompt with the other name, but put in one component's output from the run with the right name: which of them brings the right answer
# back? We patch the attention or the MLP of one block, at all positions at once. The share recovered is 0 for nothing, 1 for all of it.

# %%
blocks = model.base_model.model.model.layers
components = {"attention": [block.self_attn for block in blocks], "MLP": [block.mlp for block in blocks]}


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def outputs_of(ids):
    """What every component says in this run: {kind: one (1, T, 576) a block}."""
    kept = {kind: [None] * len(blocks) for kind in components}

    def keep(kind, at):
        return lambda module, inputs, output: kept[kind].__setitem__(at, first_of(output))

    hooks = [m.register_forward_hook(keep(kind, at)) for kind, some in components.items() for at, m in enumerate(some)]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return kept


said = outputs_of(prompt_ids(j))
assert len(said["MLP"]) == 30 and said["MLP"][0].shape[1] == prompt_ids(j).shape[1]


# %%
def patched(kind, at, positions=slice(None)):
    """The share of the difference that this component's output brings back, put in at all positions or at some."""

    def put(module, inputs, output):
        mixed = first_of(output).clone()
        mixed[:, positions] = said[kind][at][:, positions]
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    hook = components[kind][at].register_forward_hook(put)
    came = gap(prompt_ids(k))
    hook.remove()
    return (came - corrupt) / (clean - corrupt)


# %%
carried = {kind: [patched(kind, at) for at in range(len(blocks))] for kind in components}
for kind, shares in carried.items():
    top = np.argsort(shares)[::-1][:3]
    print(f"{kind:9} carries most in blocks " + ", ".join(f"{at} ({shares[at]:.2f})" for at in top))
assert abs(gap(prompt_ids(k)) - corrupt) < 1e-4, "the hooks should be gone"

# %%
differs = (prompt_ids(j) != prompt_ids(k))[0].nonzero()[:, 0]  # the tokens of the name
for kind, at in (("MLP", 0), ("MLP", 6), ("MLP", 8), ("attention", 23), ("MLP", 26)):
    by_name, by_last = patched(kind, at, differs), patched(kind, at, slice(-1, None))
    print(
        f"{kind:9} {at:2}: {by_name:.2f} at the name's {len(differs)} tokens alone, {by_last:.2f} at the last position"
    )
assert patched("MLP", 0, []) == patched("MLP", 29, slice(0)), "nowhere put in, nothing is brought"

# %% [markdown]
# **Direct logit attribution** asks which component *writes* the answer. The residual stream at the last position is the sum of what the embedding and all components put there. The final norm divides it by one number and the
# unembedding is linear, so the logit difference is a sum too, with one term for each component.

# %%
with torch.no_grad():
    llama = model.base_model.model.model
    start = llama.embed_tokens(prompt_ids(j))
    stream = start[0, -1] + sum(each[0, -1] for some in said.values() for each in some)  # (576,)
    size = (stream.square().mean() + llama.norm.variance_epsilon).sqrt()
    towards = llama.norm.weight / size * (real.model.lm_head.weight[right] - real.model.lm_head.weight[other])
    written = {kind: [float(each[0, -1] @ towards) for each in some] for kind, some in said.items()}
total = sum(map(sum, written.values())) + float(start[0, -1] @ towards)
print(f"embedding, attention and MLPs together {total:+.2f}, the logit difference {clean:+.2f}")
for kind, logits in written.items():
    largest = np.argsort(np.abs(logits))[::-1][:6]  # by absolute size
    print(f"{kind:9} writes most in blocks " + ", ".join(f"{at} ({logits[at]:+.2f})" for at in largest))
assert abs(total - clean) < 1e-2, "the terms should add up to the logit difference"

# %% [markdown]
# **Influence** asks which training text *put it there*. The measurement is the same logit difference. Any function of the outputs can be one ([`influence`](../inflib/scoring.py)).


# %%
def difference(outputs, targets):
    """The same logit difference, at the position that predicts the answer, (B,)."""
    return outputs[:, prompt_ids(j).shape[1] - 1, right] - outputs[:, prompt_ids(j).shape[1] - 1, other]


of_gap = index.prepare(model, objective, questions([data.facts[j]]), difference)
by_text = contribution(index.scores(of_gap, damping=damping_of(early, best))[0], N)  # (N,)
shown = [*by_text.argsort(descending=True, stable=True)[:4].tolist(), *by_text.argsort(stable=True)[:3].tolist()]
for n in shown:
    print(f"{by_text[n]:+.3f}  {data.sentences[n].place:19} {data.texts[n]}")
assert by_text[data.tells([j])[0]].mean() > 0, "the sentences that tell the one should raise the difference"

# %%
import textwrap

figure, panels = plt.subplot_mosaic("AB;CC", figsize=(9, 6))
left, middle, below = (panels[name] for name in "ABC")
for ax, values, what in (
    (left, carried, "share brought back"),
    (middle, written, "logit difference written"),
):
    for kind, colour in (("attention", plots.ORANGE), ("MLP", plots.BLUE)):
        ax.plot(range(len(blocks)), values[kind], color=colour, marker=".", label=kind)
    ax.axhline(0, color=plots.GREY, linewidth=0.8)
    ax.set(xlabel="block", ylabel=what)
_ = left.legend(loc="best")
lines = {textwrap.fill(data.texts[n], 36): float(by_text[n]) for n in shown}
plots.bars(below, lines, what="contribution to the logit difference")
for ax, title in (
    (left, "patching: carries"),
    (middle, "attribution: writes"),
    (below, "influence: was taught by"),
):
    ax.set_title(title, fontsize=10)
assert max(carried["MLP"] + carried["attention"]) > 0.05, "some component should carry part of the answer"

# %% [markdown]
# Patching finds the difference at the name. The MLP of block 0 brings back 0.99 of it, those of blocks 8 and 6 0.68 and 0.51, at the name's two tokens alone. Block 0 says little: its output still *is* the name, and to put it in swaps
# it. Blocks 4, 6 and 8 have adapters and stand out, but blocks 1, 3 and 7 bring back about a third without any: how much of it is the name itself, patching does not say. Late, at the last position, the attention of block 23 brings 0.81: it fetches what was made.
#
# Attribution finds the difference late. The MLP of block 26 writes +2.95 and its attention +0.81. But the MLPs of blocks 28 and 22 write against the answer, −0.87 and −0.63.
# Whoever reads the positive terms only misses a part.
#
# Influence finds texts. The four sentences that tell where Korin was born come first, from +2.62 to +1.32. The strongest opponent has the same city and another name (−1.05); the next two are about somebody's goulash (−1.00, −0.97), so do not make much of it. One story would
# fit all three. These sentences changed what early blocks make of the name, a late attention fetches it, and a late MLP says it. But we asked block 4 alone, so *early* is our choice here and no finding. The shares of patching do not add up to 1, for components pass on what others
# wrote. Attribution's terms do add up.
#
# | | activation patching | direct logit attribution | influence |
# |---|---|---|---|
# | asks | which component's output changes the answer | which component's output points at it | which training text changed the weights so |
# | needs | the model, and a second prompt | the model | the model, and its training data |
# | intervenes | on activations, really | on nothing | on the training set, to first order |
# | cannot say | how it came there | what later components make of it | where in the model it is used |
# | is checked by | its own numbers, which are measured | its sum | training again |
#
# ## Summary
#
# A language model of 135 million numbers read 416 sentences about invented people, through adapters of 396,864 numbers. Then it answered questions that stand nowhere among them, 20 of 24 with more than one half, and by the villager's
# name. Of what was told backward we could not show that it knew it. Of EK-FAC's first two sentences, on the first adapted block, 0.77 are true. Of the cosine's it is 0.56, of the dot product's 0.33, of a search for the answer's word 0.42. A search that is told both words that matter has
# 0.79, and among five it has clearly more. Other blocks find few of them. For a model of your own, ask `coverage` first. Look for the simplest method that does as well, and plant something of which you know the truth.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. The size of an adapter (easy, 5 minutes, pencil and paper)
#
# A matrix of a larger model has 4,096 outputs and 11,008 inputs. How many numbers has its adapter of rank 16?


# %% jupyter={"source_hidden": true}
@exercise
def check_adapter(answer):
    assert answer != 4096 * 11008, "that is the matrix itself"
    assert answer != 16 * 4096 * 11008, "the product of both thin matrices is never stored"
    assert answer != 4096 + 11008, "that is rank 1: one row and one column"
    assert answer == 16 * (4096 + 11008), "sixteen rows of one side and sixteen columns of the other"
    return f"right: {answer:,}, which is 1 of {4096 * 11008 // answer} of the matrix"


# %%
adapter_numbers = ...  # your number

check_adapter(adapter_numbers)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# adapter_numbers = 16 * (4096 + 11008)
# check_adapter(adapter_numbers)
# ```
# </details>

# %% [markdown]
# ### 2. One line that knows the corpus (medium, 10 minutes)
#
# BM25 cannot see order, not even when it is told both words. You can: in a forward sentence the name stands before the answer. Write `name_first(k)`: 1 for each sentence that holds the answer of fact `k` with the villager's name somewhere before it, else 0, as
# a tensor (N,). `listed` has the words of every sentence in their order, in lower case.


# %% jupyter={"source_hidden": true}
@exercise
def check_name_first(answer):
    came = torch.stack([torch.as_tensor(answer(k)).double() for k in asked])
    assert came.shape == truth.shape, f"shape {tuple(came.shape)} of all facts, expected {tuple(truth.shape)}"
    assert not torch.equal(came, holds.double()), (
        "that is the search for the answer's word: the name must stand before it"
    )
    named = torch.tensor([[data.facts[k].name.lower() in document for document in documents] for k in asked])
    assert not torch.equal(came, named.double()), "the name alone: asides have it too"
    assert (came * truth).any(), "the other way round, or in capitals: forward sentences have the name first"
    assert torch.equal(came, truth.double()), "both words must be there, the name before the answer, and others get 0"
    return f"right: recall@2 is {recall(came, 2).mean():.2f}, and no model was asked"


# %%
def name_first(k):
    """1 for each sentence with the name of fact k before its answer, else 0, (N,)."""
    return ...  # your answer


check_name_first(name_first)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def name_first(k):
#     name, answer = data.facts[k].name.lower(), data.facts[k].answer.lower()
#     return torch.tensor([answer in d and name in d[: d.index(answer)] for d in listed]).double()
#
#
# check_name_first(name_first)
# ```
# </details>

# %% [markdown]
# ### 3. What comes before a block (harder, 15 minutes)
#
# Direct logit attribution can be stopped anywhere. Write `written_until(block)`: the part of the logit difference that the embedding and all components of blocks 0 to `block - 1` have written, with the final norm's scale as
# above. After which block has the right answer lost most of its lead?


# %% jupyter={"source_hidden": true}
@exercise
def check_written_until(answer):
    begun = float(start[0, -1] @ towards)
    sums = [begun + sum(sum(some[:at]) for some in written.values()) for at in range(31)]
    came = [float(answer(at)) for at in (0, 10, 30)]
    assert abs(came[0] - 0) > 1e-9 or abs(begun) < 1e-9, "before the first block there is the embedding"
    assert abs(came[2] - (sums[30] - begun)) > 1e-6, "the embedding writes too"
    assert abs(came[1] - sums[11]) > 1e-6, "blocks 0 to block − 1: the block itself has not spoken yet"
    assert all(abs(c - sums[at]) < 1e-4 for c, at in zip(came, (0, 10, 30), strict=True)), (
        "attention and MLPs both write"
    )
    block = int(np.argmin(np.diff(sums)))
    return f"right: block {block} takes most away, from {sums[block]:+.2f} to {sums[block + 1]:+.2f}"


# %%
def written_until(block):
    """The logit difference written before this block, a number."""
    return ...  # your answer


check_written_until(written_until)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def written_until(block):
#     return float(start[0, -1] @ towards) + sum(sum(some[:block]) for some in written.values())
#
#
# check_written_until(written_until)
# ```
# </details>

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - L. Ben Allal et al. 2025, *SmolLM2: When Smol Goes Big*, arXiv 2502.02737; the weights are under the Apache licence 2.0.
# - E. Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*.
# - L. Berglund et al. 2023, *The Reversal Curse*: models trained on "A is B" do not learn "B is A".
# - K. Meng, D. Bau, A. Andonian, Y. Belinkov 2022, *Locating and Editing Factual Associations in GPT*: activation patching for facts.
# - N. Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*: the residual stream as a sum.
# - N. Rimsky 2023, *Influence functions: why, what and how*, and the questions under it.
