# %% [markdown]
# # 08 · Which sentences taught it this?
#
# **The question.** A language model completes a sentence. Which of its training texts made it say so: the one that says the same in
# other words, or the one that merely has the same words in it? On the web nobody knows the answer, so a list of plausible texts
# proves nothing. Here we train small transformers on corpora in which the answer *is* known, and then ask the question of
# Shakespeare, where it is not.
#
# **What you need to know.** Notebook 05 (EK-FAC, damping) and notebook 06 (sequences: the loss is summed over tokens, a query is
# $f = \log p(\text{completion} \mid \text{prompt})$, scores split by layer and by token). Numbers in brackets are the equations of
# Grosse et al. 2023, whose experiments with large models this notebook repeats in small.
#
# **Time.** About 45 minutes to read; it runs in about a minute on two CPU cores.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

from inflib import NextToken, TrainIndex, damping_of, ekfac, influence
from inflib.lab import corpus_of, facts, language_model, learning_rate
from inflib.validation import bootstrap, recall_at, tail_exponent, top_share
from inflib.widgets import TextBrowser, index_size, plots

scale = "small"  # of the Shakespeare model: "full" wants a GPU, see the end of the notebook
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
plots.use_style()
objective = NextToken()

# %% [markdown]
# ## The published experiment, and what it can show
#
# The experiment that this course grew from (N. Rimsky, 2023) had a transformer of two layers learn one string in which letters and
# digits take turns, `a0b1c2…z5a6…`, two hundred characters cut in windows of five, and asked for the windows with the largest
# influence on one of them. Here is the corpus, and the model: 16 wide, with its norms after each layer, like the published one.

# %%
windows = corpus_of("alternating")
tiny = language_model("alternating", windows)
print(windows.texts[:3], "to", windows.texts[-1], f"({len(windows)} windows)")

# %%
inputs, targets = windows.tensors()
right = (tiny(**inputs).argmax(-1) == targets).double().mean(0)
print("right guesses after 1, 2, 3, 4 characters:", [f"{share:.2f}" for share in right])
assert right[1:].min() > 0.98, "after two characters the next one is certain: is this the shipped checkpoint?"

# %% [markdown]
# One character does not say where in the string we are; two do. So there is one prediction that the model must guess, and three
# that it knows. As published, we look at the first linear layer of each MLP, take every window as a query, and rank all windows
# by EK-FAC, by the plain dot product of gradients, and by their cosine.

# %%
from inflib.baselines import gradient_cosine, gradient_dot

up = ["blocks.*.mlp.up"]
batches = windows.batches(64)
own = ekfac(tiny, objective, batches, up)
ranked = {
    "EK-FAC": influence(tiny, objective, batches, batches, own),
    "dot product": gradient_dot(tiny, objective, batches, batches, up),
    "cosine": gradient_cosine(tiny, objective, batches, batches, up),
}

# %%
query = windows.texts.index("k0l1m")
for name, scores in ranked.items():
    print(f"{name:12}", " ".join(windows.texts[n] for n in scores[query].argsort(descending=True, stable=True)[:6]))

# %% [markdown]
# A list to be pleased with: the window itself comes first, and windows like it follow. Now count. How often does the window itself
# come first, over all 196 queries? And how much of the five that follow it could have been had without a model, by counting the
# characters that two windows have in common?


# %%
def shared(one, other):
    return len(set(one) & set(other))


common = torch.tensor([[shared(a, b) for b in windows.texts] for a in windows.texts]).double()
others = ~torch.eye(len(windows), dtype=torch.bool)
print(f"characters in common: any two windows {common[others].mean():.2f}")

# %%
for name, scores in ranked.items():
    first = (scores.argsort(dim=1, descending=True, stable=True)[:, 0] == torch.arange(len(windows))).double().mean()
    top = scores.where(others, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :5]
    print(f"{name:12} itself first {first:.2f}, in common with the five best others {common.gather(1, top).mean():.2f}")
    assert first > 0.9, "a window should be its own strongest proponent: is the sign right?"

# %% [markdown]
# Every method passes, so the experiment cannot tell them apart: the window itself comes first in all 196 lists, for EK-FAC as for a
# plain dot product, and the five best others have two and a half times as many characters in common with the query as any two windows have.
# A reader who sees the list nods. But nobody can say which windows *should* have come first, so the nod is worth little. What the
# experiment does show: the machinery runs on a transformer, and its sign is right. For more, we need a corpus with a known answer.
#
# ## A corpus in which the truth is known
#
# So we invent facts. Each ties a place to a person, and three wordings tell it that share **no word but the two names**. Half of the
# facts, the *told* ones, stand in the corpus in all three wordings. The other half, the *asked* ones, stand there only as two
# paraphrases; their question is never seen in training. All else is distraction: sentences that use the same names, and the
# question's own words, to say something else.

# %%
data = facts()
train, asked = data.train, data.asked
fact = data.facts[asked[0]]
print("question:   ", fact.told(0))
for text in train.texts:
    if {fact.place, fact.person} & set(text.split()):
        print("    trained:", text)
assert fact.told(0) not in train.texts, "an asked question must not stand in the corpus"
print(data)

# %% [markdown]
# The model has two blocks of width 64 and reads words. Does it answer questions that it was never told the answer of, in these words?
# That is what makes the corpus useful: whatever it knows about the asked facts, it knows from two sentences each, and we
# know which.

# %%
model = language_model("facts", train)
queries = data.queries()  # log p(person | question), one batch each
answers = torch.cat([y[:, -1] for _, y in queries])
p = torch.stack([model(**x)[0, -1].softmax(-1) for x, _ in queries]).detach()  # (40, V)
sure = p.gather(1, answers[:, None])[:, 0]
print(
    f"{int((p.argmax(1) == answers).sum())} of {len(asked)} answered, with probability {sure.min():.2f} to {sure.max():.2f}"
)
assert (p.argmax(1) == answers).all(), "the model should have learned all asked facts from their paraphrases"
assert sure.max() < 0.98, "a model that is certain has no gradients left to compare"

# %% [markdown]
# All of them, and none with certainty: the weight decay it was trained with keeps it from interpolating, and its learning rate fell to zero, so
# that we may speak of an optimum (`data/README.md` has the recipe, and what happens without the weight decay).
#
# ## Counting words
#
# The first method to beat has no model in it. BM25 scores a sentence by the words it has in common with the query, rare
# ones more. Where the answer is told in the question's own words, as it is for the *told* facts, it is perfect. Then ask for
# paraphrases: of the two sentences that taught the model each asked fact, how many are among the two that BM25 finds first?

# %%
from inflib.baselines import bm25

texts = [text.split() for text in train.texts]
truth = data.answers()  # (40, 460) bool: the two paraphrases of every asked fact
verbatim = data.answers(range(40)) & (data.wording == 0)
print(int(truth.sum()), "paraphrases to find among", len(texts))

# %%
told = bm25(texts, [data.facts[k].told(0).split() for k in range(40)])
words = bm25(texts, [data.facts[k].told(0).split() for k in asked])
print(f"told in the question's words: first for {recall_at(told, verbatim, 1).mean():.2f} of 40 facts")
print(f"paraphrased: recall@2 is {recall_at(words, truth).mean():.2f}")
assert recall_at(told, verbatim, 1).mean() == 1 and recall_at(words, truth).mean() < 0.1, "has a wording changed?"

# %% [markdown]
# Perfect where words overlap, and misled where the same thing is said otherwise: two distractors have the names *and* the
# question's own words, and come first every time.
#
# ## Asking the model
#
# Now EK-FAC, on all linear layers, with labels drawn from the model. The index keeps every training sentence's gradient in the
# eigenbasis, so that many dampings can be tried on one pass; K-FAC and the dot product are answered from the same index.

# %%
from inflib.widgets import three_methods

layers = ["blocks.*", "unembed"]
batches = train.batches(64)
curvature = ekfac(model, objective, batches, layers)
methods = three_methods(model, objective, batches, curvature)
print(index_size(model, batches, curvature))
index = TrainIndex.build(model, objective, batches, curvature)

# %%
prepared = index.prepare(model, objective, queries)
scores = index.scores(prepared, damping=damping_of(curvature, 0.001))  # (40, 460)
assert scores.shape == truth.shape, "one row a query, one column a training sentence"

# %% [markdown]
# An index can be kept. Read back, it answers as before, without a pass over the training data; for a model with other weights it is
# refused.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from inflib import load_index, save

with TemporaryDirectory() as folder:
    save(index, Path(folder) / "facts.safetensors")
    kept_index = load_index(Path(folder) / "facts.safetensors", model)
again = kept_index.scores(kept_index.prepare(model, objective, queries), damping=damping_of(curvature, 0.001))
assert torch.allclose(again, scores, atol=1e-8), "the index read back should answer as the index built"
del kept_index  # it is as large as the first

# %% [markdown]
# One answer in full, with a star where the sentence tells the fact. Read the sentences without a star too: what do they have to do with the question?

# %%
print("question:", fact.told(0))
for n in scores[0].argsort(descending=True, stable=True)[:7].tolist():
    print(f"{scores[0, n]:9.1f}  {'*' if truth[0, n] else ' '} {train.texts[n]}")
print(f"recall@2 of this query: {recall_at(scores[:1], truth[:1])[0]:.1f}")
slow = influence(model, objective, batches, queries[:1], curvature, damping_of(curvature, 0.001))
assert torch.allclose(slow, scores[:1], atol=1e-8), "the index should give what a fresh pass gives"

# %% [markdown]
# The two sentences that tell the fact have five times the score of whatever does not name Nasak, or more. But before them comes a sentence about
# Nasak's horse, so that of the two highest one tells the fact: this query's recall@2 is one half. Yet the horse stands there rightly: it, too, taught the model to say *Nasak*, if in another place. This is what influence measures, what raises the
# completion, and it is not quite the same as what *tells* the fact. The rest are sentences of the question's own form.
#
# ## A fair comparison
#
# Every method has a dial: EK-FAC and K-FAC their damping, BM25 its two constants, TracIn (the dot product summed over checkpoints
# of the training run, each times its learning rate) the choice of checkpoints. Whoever turns a dial until the result is good has
# measured nothing. So all are treated alike: **each dial is chosen on the even half of the facts, and the result reported on the
# odd half.** The dampings are the same numbers for EK-FAC and K-FAC; of equal choices the first in the list wins.

# %%
from inflib.baselines import tracin

dials = {}
for name in ("EK-FAC", "K-FAC"):
    some = [10.0**-k for k in range(7)]
    dials[name] = {f"{x:g} · mean Λ": index.scores(prepared, methods[name], damping_of(curvature, x)) for x in some}

# %%
dials["dot product"] = {"": gradient_dot(model, objective, batches, queries, layers)}
dials["cosine"] = {"": gradient_cosine(model, objective, batches, queries, layers)}
question = [data.facts[k].told(0).split() for k in asked]
dials["BM25"] = {f"k1={k1}, b={b}": bm25(texts, question, k1=k1, b=b) for k1 in (0.5, 1.5, 3) for b in (0, 0.75, 1)}

# %%
kept = {e: (language_model("facts", train, epoch=e).state_dict(), learning_rate("facts", e)) for e in (5, 15, 50)}
choices = {"all three": (5, 15, 50), "epoch 5": (5,), "epoch 15": (15,), "epoch 50": (50,)}
dials["TracIn"] = {
    what: tracin(model, objective, batches, queries, [kept[e] for e in some], layers) for what, some in choices.items()
}
assert torch.allclose(dials["TracIn"]["all three"], sum(dials["TracIn"][f"epoch {e}"] for e in kept), atol=1e-8), (
    "TracIn is a sum over checkpoints"
)

# %%
even, odd = slice(0, None, 2), slice(1, None, 2)
reported = {}
for name, some in dials.items():
    best = max(some, key=lambda what: recall_at(some[what], truth)[even].mean())  # max keeps the first of equals
    reported[name] = recall_at(some[best], truth)[odd]
    print(f"{name:12} recall@2 {bootstrap(reported[name]):.2f}   {best}")
assert reported["EK-FAC"].mean() >= 0.9, "EK-FAC should find nine of ten paraphrases"
assert reported["BM25"].mean() < 0.1 and reported["dot product"].mean() < 0.2, "the distractors mislead these two"

# %% [markdown]
# The table holds more than its first line. So before it is read, three things that it does not say. What did the choices give that were not
# chosen? K-FAC's damping is the end of the list: what do smaller ones give? And the curvature is fitted on labels that were drawn once:
# what do other draws give, each with its damping chosen anew?


# %%
def halves(scored):
    """recall@2 on the even and on the odd half."""
    recall = recall_at(scored, truth)
    return f"{recall[even].mean():.3f}/{recall[odd].mean():.3f}"


for name in ("EK-FAC", "K-FAC", "TracIn"):
    print(f"{name:7}", "  ".join(f"{what.split(' ·')[0]}: {halves(scored)}" for what, scored in dials[name].items()))
for x in (1e-7, 1e-8, 1e-9):
    print(f"K-FAC at {x:g}: {halves(index.scores(prepared, methods['K-FAC'], damping_of(curvature, x)))}")
assert all(recall_at(dials["TracIn"][f"epoch {e}"], truth).mean() < 0.6 for e in (15, 50)), (
    "later epochs should be poor"
)


# %%
def with_labels(seed):
    """EK-FAC's recall on the odd half, fitted on labels drawn from this seed, at the damping best on the even half."""
    own = ekfac(model, objective, batches, layers, seed=seed)
    drawn = TrainIndex.build(model, objective, batches, own)
    asking = drawn.prepare(model, objective, queries)
    tried = [recall_at(drawn.scores(asking, damping=damping_of(own, 10.0**-k)), truth) for k in range(7)]
    return float(max(tried, key=lambda recall: recall[even].mean())[odd].mean())


draws = [with_labels(seed) for seed in range(1, 5)]
print("EK-FAC, four other draws of the labels:", *(f"{recall:.3f}" for recall in draws))
assert min(draws) >= 0.9, "nine of ten paraphrases should be found whatever labels are drawn"

# %% [markdown]
# *EK-FAC and K-FAC* find nearly all paraphrases. On twenty facts their intervals overlap: no claim that the correction helps here. K-FAC at
# dampings smaller than any in its list finds no more. And EK-FAC's nineteen of twenty is one draw of the labels: of four others three give
# 37 of the 40 paraphrases, one 39.
#
# *The dot product* finds none: long gradients win whatever they are about. Divided by its norms, the cosine, it finds exactly one of each
# two.
#
# *TracIn* is the same dot product, and as good as EK-FAC, **if** it is taken at epoch 5, when the model knew little and every gradient
# still meant something. At epoch 15 its recall is 0.575 on the even half and 0.425 on the odd one,
# at epoch 50 no more than 0.150 and 0.275. On a corpus without a known truth, who would have told us to take epoch 5? The same
# must be asked of every dial here.
#
# How much hangs on the damping? The figure shows both halves; the vertical position of the grey lines is what the
# methods without a damping reach.

# %%
figure, ax = plt.subplots()
for name, colour in (("EK-FAC", plots.BLUE), ("K-FAC", plots.ORANGE)):
    for half, style in ((even, "-"), (odd, "--")):
        values = [float(recall_at(scored, truth)[half].mean()) for scored in dials[name].values()]
        where = "even, chosen on" if half is even else "odd, reported"
        ax.plot([10.0**-k for k in range(7)], values, style, color=colour, marker="o", label=f"{name}, {where}")
        assert name == "K-FAC" or values == sorted(values), "more damping should not help EK-FAC here"
    missed = 1 - recall_at(dials[name]["0.1 · mean Λ"], truth).mean()
    print(f"{name:6} misses {missed:.2f} of the 80 paraphrases at 0.1")
for name in ("cosine", "dot product"):
    level = float(recall_at(dials[name][""], truth).mean())
    ax.axhline(level, color=plots.GREY, linewidth=0.8, linestyle=":")
    ax.text(1.0, level + 0.015, name, ha="right", fontsize=8, color=plots.GREY)
ax.set(xscale="log", xlabel="damping / mean eigenvalue", ylabel="recall@2 of the paraphrases", ylim=(-0.03, 1.03))
_ = ax.legend(loc="center left", bbox_to_anchor=(0.0, 0.28))

# %% [markdown]
# For EK-FAC more damping never gives more recall, on neither half: as λ grows, $(C+\lambda I)^{-1}$ tends to a multiple of the identity, and
# the identity finds nothing. For K-FAC the same holds up to 0.01; from there to 1 its recall rises again, by one paraphrase of
# the 40 in each half.
# At the customary 0.1 EK-FAC misses a sixth of the paraphrases, K-FAC a fifth. Below 0.001 the damping hardly matters for EK-FAC; K-FAC
# gains until 1e-6. Notebook 09 asks
# whether small dampings are also better at predicting what retraining does; finding a fact is another task.
#
# ## Which words, which layers?
#
# A sentence's influence is a sum over its predicted words [36] and over layers [30]; both splits are exact. First the words. For six
# questions we colour the stronger of the two paraphrases by the influence of each *prediction*: training on that word, given all
# before it. Look for where the colour is.

# %%
from inflib.tokens import output_tokens

λ = damping_of(curvature, 0.001)
rows, chosen = [], range(0, 12, 2)
for q in chosen:
    n = int(scores[q].where(truth[q], 0).argmax())
    each = output_tokens(model, objective, train[[n]].batches(1), queries[q : q + 1], curvature, λ)[0, 0]
    length = len(train.sequences[n])
    assert torch.allclose(each.sum(), scores[q, n], atol=1e-6), "the words should add up to the sentence"
    rows.append((train.vocabulary.pieces(train.sequences[n]), [0.0, *each[: length - 1].tolist()]))
_ = plots.heated_texts(rows, captions=[data.facts[asked[q]].told(0) for q in chosen])
share = torch.tensor([values[-1] / sum(values) for _, values in rows])
print(f"the person's name, the last word, holds {share.min():.2f} to {share.max():.2f} of the influence")
assert share.min() > 0.9, "most of the influence should lie in the prediction of the name"

# %% [markdown]
# In one word: the person's name, where the model learned to say it. What stands before it is context for that prediction, and what is
# predicted on the way, *owes*, *its*, *herb*, has next to no influence on this question.
#
# Then the layers. On the left, what each contributes to the influence of the true paraphrases; on the right, what happens when
# that layer alone is asked: its recall.

# %%
split = index.scores(prepared, damping=λ, keep=("layer",))  # (40, 460, 13)
assert torch.allclose(split.sum(-1), scores, atol=1e-8), "layers should add up to the total"
carried = split[truth].sum(0) / scores[truth].sum()
alone = [float(recall_at(split[..., k], truth).mean()) for k in range(len(curvature.layers))]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
plots.bars(left, dict(zip(curvature.layers, carried.tolist(), strict=True)), what="share of the paraphrases' influence")
_ = plots.bars(right, dict(zip(curvature.layers, alone, strict=True)), what="recall@2 of the layer alone")
assert carried.argmax() == len(carried) - 1 and max(alone) == alone[-1], (
    "the unembedding should carry most, and find most"
)

# %%
groups = {"attention": "attention", "MLPs": "mlp", "unembedding": "unembed"}
for name, part in groups.items():
    some = [k for k, layer in enumerate(curvature.layers) if part in layer]
    print(
        f"{name:12} share {carried[some].sum():5.2f}, recall@2 {recall_at(split[..., some].sum(-1), truth).mean():.2f}"
    )

# %% [markdown]
# The unembedding carries nearly all of the influence, and alone finds as much as all layers together: the largest part of what
# made the model say a name is what taught it to say that name in such a place. The MLPs carry a few per cent, and find half of the paraphrases;
# attention carries a hundredth and finds 0.06 of them. So a layer's share is not its use. (They were all judged at one damping, chosen for the whole model;
# exercise 3 is fairer to the MLPs.) Grosse et al. use the MLPs alone, and so do we for Shakespeare.
#
# ## Does it survive a change of word order?
#
# Grosse et al. found that influence collapses when a training text says the same with its words in another order, so that the
# completion comes before the prompt. We reverse every training sentence, word by word, and score the reversed ones: what
# *would* training on them do? No retraining is needed to ask that, only their gradients.

# %%
turned = data.reversed()
backwards = influence(model, objective, turned.batches(64), queries, curvature, λ)  # (40, 460)
for name, some in (("as trained", scores), ("reversed", backwards)):
    print(f"{name:11} paraphrases {some[truth].mean():8.1f}, all others {some[~truth].mean():8.2f}")
print(f"reversed paraphrases that lower the answer: {(backwards[truth] < 0).double().mean():.2f}")
assert backwards[truth].mean() < 0.1 * scores[truth].mean(), "reversed sentences should have lost their influence"

# %% [markdown]
# Nothing of it is left; more than half of the reversed paraphrases would even *lower* the answer. All the words are there, and
# *Nasak recalls Benus at stone every* teaches the model who comes before a place, which is not what was asked. Grosse et al. report the
# same for models of up to 52 billion parameters, and models that learned "A is B" fail when asked about B (Berglund et al. 2023). Influence
# here follows the direction in which a text was read.
#
# ## How concentrated is it?
#
# Does a completion come from a few texts or from everything? Two numbers for each query: the share of all positive influence that
# the top 1% of sentences hold, and the exponent α of the tail, $P(\text{score} > x) \propto x^{-\alpha}$. The smaller α, the heavier the
# tail: below 2 the variance of a power law is infinite, below 1 even its mean. Hill's estimate uses the $k$ largest scores
# and has a standard error of α/√k.

# %%
held = top_share(scores, 0.01)
print(f"the top 1% (5 of 460 sentences) hold {bootstrap(held):.2f} of the positive influence")
for k in (10, 20, 40):
    tails = [tail_exponent(row, k) for row in scores]
    mean = sum(tail.exponent for tail in tails) / len(tails)
    print(f"tail exponent from the {k:2} largest: {mean:.2f} on average; for the first query {tails[0]}")
assert held.min() > 0.2, "a few sentences should carry each answer"

# %%
figure, ax = plt.subplots()
for q in range(0, 40, 4):
    positive = scores[q][scores[q] > 0].sort(descending=True).values
    ax.plot(range(1, len(positive) + 1), positive, color=plots.BLUE, alpha=0.4, linewidth=1)
highest = scores.sort(dim=1, descending=True, stable=True).values
drop = (highest[:, 1] / highest[:, 2]).median()
both = int((recall_at(scores, truth) == 1).sum())
ax.axvline(2.5, color=plots.GREY, linewidth=0.8, linestyle="--")
ax.text(2.7, 0.001, "left of this line: the two highest", fontsize=8, color=plots.GREY)
ax.set(xscale="log", yscale="log", xlabel="rank of the sentence", ylabel="positive score (nats per unit of weight)")
print(f"the two highest are the two that tell the fact for {both} of {len(scores)} queries")
print(f"from the second to the third sentence the score falls by a factor of {drop:.1f} (median)")
assert drop > 1.5, "the truth should stand apart from what follows"

# %% [markdown]
# Very concentrated: of 460 sentences five hold more than half of the positive influence. Behind the two highest, which for 35 of the 40 queries
# are the two that tell the fact, the score falls by a factor of eight, and what follows is heavy-tailed, with an exponent near 1. How near? The ten largest scores give a
# standard error of a third; forty give a smaller one, and another exponent, because where the tail begins is our choice.
# And a power law has no step in it, whereas our curves begin with one. So: heavy-tailed, yes, as Grosse et al. found; a law, no.
#
# ## Ask for yourself
#
# All of this at once, and questions of your own. Type a prompt and a completion (words of this corpus), or choose a ready one; colours
# show the words, bars the layers, and a click on a bar keeps that layer alone. Try three things. Choose the gradient dot product: what does it
# find? Divide by the gradients' norms: what changes? And ask for a wrong answer: which sentences would have taught it *that*?

# %%
ready = [(data.facts[k].prompt, data.facts[k].person) for k in asked[:6]]
TextBrowser(model, objective, index, train, ready, curvatures=methods, damping=0.001)

# %% [markdown]
# ## Shakespeare
#
# Last, a text that nobody made up for the purpose. The model reads characters: two blocks of width 128, a context of 128
# characters, trained on the two thousand sequences of *Romeo and Juliet* and the third part of *Henry VI*. The text itself does not ship with the
# repository; it is looked for below the folder that `INFLIB_DATA` names, then downloaded once (1.1 MB).

# %%
try:
    plays = corpus_of("shakespeare", scale)
except FileNotFoundError:
    plays = None  # without the file and without a network
print(
    "the plays are here" if plays else "The plays are not at hand; what follows shows what they gave where they were."
)
assert plays is None or len(plays) >= 64, "expected the plays cut into sequences"

# %% [markdown]
# Where they are, this is all it takes, the same lines as for the facts. The index states its size before it is built: two thousand
# sequences take a gigabyte in half precision. Where it would take more than four, as at the larger scale with its 62, only a part is searched: every sixteenth there.

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"


def ask_the_plays(plays, ready, scale="small", layers=("blocks.*.mlp.*",), most=4e9):
    """The text browser for a model of the plays: fitted, indexed, and ready for any question in their characters."""
    reader = language_model("shakespeare", plays, scale, dtype=torch.float32, device=device)
    batches = plays.batches(32, device=device)
    curvature = ekfac(reader, objective, batches, list(layers))
    needed = TrainIndex.bytes_needed(reader, batches, curvature, torch.float16)
    searched = plays[:: -int(-needed // most)]
    batches = searched.batches(32, device=device)
    print(index_size(reader, batches, curvature, torch.float16))
    index = TrainIndex.build(reader, objective, batches, curvature, dtype=torch.float16)
    return TextBrowser(reader, objective, index, searched, ready, damping=0.1)


ready = [("O Romeo, Romeo! wherefore art thou ", "Romeo?"), ("Good night, good ", "night!"), ("WARWICK:\nThe ki", "ng")]
browser = ask_the_plays(plays, ready, scale) if plays else None

# %%
if browser is not None:
    best = [(then, row) for prompt, then in ready for row in browser.ask(prompt, then).raised[:3]]
    rows = [(row.passage.pieces, np.nan_to_num(row.shown_tokens)) for _, row in best]
    captions = [f"“{then}”   {row.score:+.0f}   {row.passage.place}" for then, row in best]
    _ = plots.heated_texts(rows, captions=captions, columns=64)
    browser.ask(*ready[0])
assert browser is None or scale != "small" or "".join(ready[0]) in best[0][1].passage.text, (
    "the line asked about should be its own strongest proponent"
)

# %%
browser if browser is not None else "no plays, no browser: set INFLIB_DATA, and run this notebook again"

# %% [markdown]
# This is what it gave, in a run with the plays at hand (`INFLIB_DATA` set to a folder that holds `tinyshakespeare/input.txt`; the fit and
# the index took a minute and a half of one processor, an answer under two seconds):
#
# ![The three strongest proponents of three completions, coloured by the influence of each character](images/shakespeare.png)
#
# Asked why it would say *Romeo?* after *O Romeo, Romeo! wherefore art thou*, the model of 430,000 weights points at the line itself, first of
# two thousand passages; asked about *Good night, good night!* it points at Juliet's *parting is such sweet sorrow*. After *WARWICK: The ki* it says
# *ng*, and the strongest passage has no king in it: *loving*, *any thing*, *nothing* are where it learned what follows an *i*. But mind the measure: the model is weak (2.0 nats a character), such a query
# repeats its source letter by letter, and finding *that* is what BM25 would do as well. Nobody knows what the right second passage is, and the lists are as
# pleasant to read as those of the alternating letters were.
#
# For a GPU, set `scale = "full"` in the first cell: six blocks of width 384, a context of 256 characters, all of the plays. The model is trained when it is first
# asked for, and kept in the cache; all that follows is the code above. On one H100 the whole notebook then took a minute and a half, training
# included, and 6.7 GB of the GPU's memory; a typed question to the 273 passages of its index is answered in 0.2 seconds. Asked about *Romeo?*, this model of
# 10.8 million weights points at Friar Laurence's *Shall Romeo by my letters know our drift*; the line itself is not among its sixteenth of the passages.
#
# ## Summary
#
# On letters and digits in turn every method finds the query itself, so that experiment shows that the code runs and no more. On
# invented facts, told only in other words, EK-FAC finds 37 to 39 of 40 paraphrases, depending on the labels drawn, at a damping chosen on other
# facts, K-FAC about as many; word counting and the plain dot product are misled, and TracIn needs to know which epoch to trust. The influence sits in the
# prediction of the answering name, mostly in the unembedding, though the MLPs find it too; it vanishes when the words are reversed; and a
# handful of sentences holds most of it. Every dial that was turned here was turned with the truth at hand, which a real corpus does not offer.
#
# Next, in notebook 09: whether any of this predicts what happens when a text is really left out.
#
# ## Exercises
#
# Write each function in a new cell and call its check. The solution is folded away, and the cell after it runs it.
#
# ### 1. What a query is (easy, 10 minutes)
#
# Write `ask(prompt, completion)`: the batch of one, as `influence` takes it, for two strings of words of this corpus. The completion may have
# several words. The prompt's words are read but not predicted: their targets are −100. The check knows three usual mistakes.


# %%
def check_ask(answer):
    prompt, then = f"the builder of {fact.place}", f"was {fact.person}"
    (x, y), encode = answer(prompt, then), train.vocabulary.encode
    whole = encode(f"{prompt} {then}")
    assert x["input_ids"].tolist() != [whole], "the last word is only predicted: leave it out of the inputs"
    assert (y == -100).any(), "the prompt is not predicted: its targets are -100"
    assert y[0, -1] == whole[-1], "targets are shifted by one: position t predicts word t + 1"
    steps = [model(torch.tensor([whole[: len(whole) - k]]))[0, -1].log_softmax(-1)[whole[-k]] for k in (2, 1)]
    came = -objective.loss(model(**x), y)
    assert torch.allclose(came, sum(steps)), "log p of two words is the sum of both, the second given the first"
    print(f"right: log p = {float(came.detach()):.2f} nats for two words")


# %% [markdown]
# <details><summary>Solution</summary>
#
# `inflib.completion` does this, with messages for what cannot be asked.
#
# ```python
# def ask(prompt, completion):
#     first, then = train.vocabulary.encode(prompt), train.vocabulary.encode(completion)
#     ids = torch.tensor([first + then[:-1]])
#     targets = torch.tensor([[-100] * (len(first) - 1) + then])
#     return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, targets
#
#
# check_ask(ask)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def ask(prompt, completion):
    first, then = train.vocabulary.encode(prompt), train.vocabulary.encode(completion)
    ids = torch.tensor([first + then[:-1]])
    targets = torch.tensor([[-100] * (len(first) - 1) + then])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, targets


check_ask(ask)

# %% [markdown]
# ### 2. The measure decides (medium, 15 minutes)
#
# recall@2 asks for both paraphrases at the very top. Write `mean_rank(scores)`: for every query the mean rank of its true sentences,
# 1 being the best, ties by index; then look at the gradient dot product and at BM25. Which of the two is closer to useful?


# %%
def check_mean_rank(answer):
    for name in ("EK-FAC", "BM25", "dot product"):
        first = next(iter(dials[name].values()))
        ranks = answer(first)
        assert ranks.shape == (40,), "one number a query"
        assert ranks.min() >= 1.5, "two sentences have ranks 1 and 2 at best: do ranks begin at 1?"
        by_sorting = [(row.argsort(descending=True, stable=True).argsort() + 1) for row in first]
        truly = torch.stack([r[t].double().mean() for r, t in zip(by_sorting, truth, strict=True)])
        assert not torch.allclose(ranks, 461 - truly), "ranked from the bottom: the largest score has rank 1"
        assert torch.allclose(ranks, truly), "argsort gives the order; argsort of that gives the ranks"
        print(f"{name:12} mean rank of the paraphrases {ranks.mean():6.1f} of 460")


# %% [markdown]
# <details><summary>Solution</summary>
#
# A method may be useless at the top and still put the truth in the first tenth, or the reverse. For reading the first few results, which is what
# people do, recall at a small number is the honest measure.
#
# ```python
# def mean_rank(scores):
#     ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
#     return (ranks * truth).sum(1) / truth.sum(1)
#
#
# check_mean_rank(mean_rank)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def mean_rank(scores):
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    return (ranks * truth).sum(1) / truth.sum(1)


check_mean_rank(mean_rank)

# %% [markdown]
# ### 3. Fair to the MLPs (harder, 20 minutes)
#
# The bars judged each layer at a damping chosen for all of them. Write `mlps_alone(multiples)`: for the MLP layers alone, choose the multiple of the mean
# eigenvalue on the even facts (the first of equals), and return it with the recall on the odd facts. `index.scores` takes `layers=`, and
# `relative(0.01)` is a damping of 0.01 times each layer's own mean. Do you expect the MLPs to do without the unembedding?


# %%
def check_mlps_alone(answer):
    multiples = [10.0**-k for k in range(7)]
    best, found = answer(multiples)
    mlps = [name for name in curvature.layers if "mlp" in name]
    each = {x: recall_at(index.scores(prepared, damping=relative(x), layers=mlps), truth) for x in multiples}
    on_odd = max(multiples, key=lambda x: each[x][odd].mean())
    assert best in multiples, "return the multiple first, then the recall"
    assert not (found == each[on_odd][odd].mean() != each[best][odd].mean()), "chosen on the half that is reported"
    assert best == max(multiples, key=lambda x: each[x][even].mean()), "choose on the even facts, the first of equals"
    assert torch.isclose(torch.as_tensor(found), each[best][odd].mean()), (
        "report the odd facts, and the MLP layers alone"
    )
    print(
        f"MLPs alone, damping {best:g} · mean Λ: recall@2 {float(found):.2f}; at 0.001 it is {each[0.001][odd].mean():.2f}"
    )


# %% [markdown]
# <details><summary>Solution</summary>
#
# With a damping of their own, a thousand times smaller, the MLPs find nine of ten paraphrases without the unembedding: in this small model, too, what
# they store is found in them. And the choice sits at the end of the list we tried, so a wider one should be tried.
#
# ```python
# from inflib import relative
#
#
# def mlps_alone(multiples):
#     mlps = [name for name in curvature.layers if "mlp" in name]
#     found = {x: recall_at(index.scores(prepared, damping=relative(x), layers=mlps), truth) for x in multiples}
#     best = max(multiples, key=lambda x: found[x][even].mean())
#     return best, found[best][odd].mean()
#
#
# check_mlps_alone(mlps_alone)
# ```
# </details>

# %% jupyter={"source_hidden": true}
from inflib import relative


def mlps_alone(multiples):
    mlps = [name for name in curvature.layers if "mlp" in name]
    found = {x: recall_at(index.scores(prepared, damping=relative(x), layers=mlps), truth) for x in multiples}
    best = max(multiples, key=lambda x: found[x][even].mean())
    return best, found[best][odd].mean()


check_mlps_alone(mlps_alone)

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - N. Rimsky 2023, *Influence functions: why, what and how*: the experiment on letters and digits.
# - E. Akyürek et al. 2022, *Towards Tracing Factual Knowledge in Language Models Back to the Training Data*: BM25 is hard to beat.
# - G. Pruthi, F. Liu, S. Kale, M. Sundararajan 2020, *Estimating Training Data Influence by Tracing Gradient Descent*: TracIn.
# - S. Robertson, H. Zaragoza 2009, *The Probabilistic Relevance Framework: BM25 and Beyond*.
# - B. Hill 1975, *A Simple General Approach to Inference About the Tail of a Distribution*.
# - L. Berglund et al. 2023, *The Reversal Curse*: models trained on "A is B" do not learn "B is A".
