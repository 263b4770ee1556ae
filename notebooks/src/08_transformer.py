# %% [markdown]
# # 08 · Which sentences taught it this?
#
# **The question.** A language model completes a sentence. Which of its training texts made it say so: the one that says the same in
# other words, or the one that merely has the same words in it? On the web nobody knows the answer, so a list of plausible texts
# proves nothing. Here we train small transformers on corpora in which the answer *is* known. Then we ask the question of
# Shakespeare, where it is not.
#
# **What you need to know.** Symbols: [one table](notation.md). Notebook 05 (EK-FAC, damping) and notebook 06: the loss is summed over tokens, a query is
# $m = \log p(\text{completion} \mid \text{prompt})$, scores split by layer and by token. Numbers in brackets are the equations of
# Grosse et al. 2023, whose experiments with large models this notebook repeats in small.
#
# **Time.** About 60 minutes to read; it runs in about two minutes on two CPU cores.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

from inflib import NextToken, TrainIndex, completion, contribution, damping_of, ekfac, influence
from inflib.lab import corpus_of, exercise, facts, language_model, learning_rate
from inflib.validation import bootstrap, rank_correlation, recall_at, tail_exponent, top_share
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
# digits take turns, `a0b1c2…z5a6…`. Its two hundred characters were cut in windows of five, and the question was which windows have the largest
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
# that it knows. As published, we look at the first linear layer of each MLP and take every window as a query. We rank all windows
# by EK-FAC, by the plain dot product of gradients, and by their cosine.

# %%
from inflib.baselines import gradient_cosine, gradient_dot

up, all_windows = ["blocks.*.mlp.up"], windows.batches(64)
ranked = {
    "EK-FAC": influence(tiny, objective, all_windows, all_windows, ekfac(tiny, objective, all_windows, up)),
    "dot product": gradient_dot(tiny, objective, all_windows, all_windows, up),
    "cosine": gradient_cosine(tiny, objective, all_windows, all_windows, up),
}

# %%
window = windows.texts.index("k0l1m")
for method, table in ranked.items():
    print(f"{method:12}", " ".join(windows.texts[n] for n in table[window].argsort(descending=True, stable=True)[:6]))

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
for method, table in ranked.items():
    first = (table.argsort(dim=1, descending=True, stable=True)[:, 0] == torch.arange(len(windows))).double().mean()
    top = table.where(others, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :5]
    print(
        f"{method:12} itself first {first:.2f}, in common with the five best others {common.gather(1, top).mean():.2f}"
    )
    assert first > 0.9, "a window should be its own strongest proponent: is the sign right?"

# %% [markdown]
# Every method passes, so the experiment cannot tell them apart. The window itself comes first in all 196 lists, for EK-FAC as for a
# plain dot product. The five best others have two and a half times as many characters in common with the query as any two windows have.
#
# A reader who sees the list nods. But nobody can say which windows *should* have come first, so the nod is worth little. What the
# experiment does show: the machinery runs on a transformer, and its sign is right. For more, we need a corpus with a known answer.
#
# ## A corpus in which the truth is known
#
# So we invent facts. Each ties a place to a person, and three wordings tell it that share **no word but the two names**. Half of the
# facts, the *told* ones, stand in the corpus in all three wordings. The other half, the *asked* ones, stand there only as two
# paraphrases; their question is never seen in training. All else is distraction: sentences that use the same names, and the
# question's own words, to say something else.
#
# Mind how this corpus is made: it is built against whoever counts words. For each fact two **decoys** name both its place and its person, in the
# question's own words, without telling it.

# %%
data = facts()
train, asked = data.train, data.asked
fact = data.facts[asked[0]]
print("question:   ", fact.told(0))
for text in train.texts:
    if {fact.place, fact.person} & set(text.split()):
        print("    trained:", text)
print("decoys:     ", "; ".join(train.texts[n] for n in data.decoys()[0].nonzero().flatten().tolist()))
print(data)
assert fact.told(0) not in train.texts, "an asked question must not stand in the corpus"

# %% [markdown]
# The model has two blocks of width 64 and reads words. Does it answer questions that it was never told the answer of, in these words?
# Each answer could then come from two sentences alone, and we know which.

# %%
model = language_model("facts", train)
queries = data.queries()  # log p(person | question), one batch each
answers = torch.cat([y[:, -1] for _, y in queries])
p = torch.stack([model(**x)[0, -1].softmax(-1) for x, _ in queries]).detach()  # (40, 193)
sure = p.gather(1, answers[:, None])[:, 0]
known = int((p.argmax(1) == answers).sum())
print(f"{known} of {len(asked)} answered, with probability {sure.min():.2f} to {sure.max():.2f}")
assert (p.argmax(1) == answers).all(), "the model should have learned all asked facts from their paraphrases"
assert sure.max() < 0.98, "a model that is certain has no gradients left to compare"

# %% [markdown]
# All of them, and none with certainty. Its learning rate fell to zero, so that training came to rest. By the ruler of notebook 02, at an optimum?

# %%
from inflib.lab.language_models import RECIPES


def gradient_of(rows, decay=0.0):
    """The gradient of these sentences' mean loss plus ½ decay ‖θ‖², over all weights."""
    (x, y), weights = rows.tensors(), list(model.parameters())
    loss = objective.loss(model(**x), y).mean() + decay / 2 * sum(w.square().sum() for w in weights)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


left = gradient_of(train, RECIPES["small"]["facts"].training["weight_decay"]).norm()
one = torch.stack([gradient_of(train[[n]]).norm() for n in range(0, len(train), 10)]).median()
print(f"gradient of the objective {left:.2f}, of one sentence {one:.2f} (median)")
print(f"the slope that is left is worth {left / (one / len(train)):.0f} sentences")
assert left < one / 10, "training did not come to rest: is this the checkpoint of the falling rate?"

# %% [markdown]
# Near one, for a network, and not at one: what is computed below is the response of notebook 02's proximal objective.
#
# ## Is it the paraphrases?
#
# "It could only come from those two sentences" is an argument. The experiment is to take them away. A second model was trained in the same way, from
# the same seed, without 80 sentences. Of every second asked fact, the *even* ones, it never read the two paraphrases. Of the others, the *odd* ones, it never
# read the two decoys. What has it forgotten?

# %%
kept_rows = ~data.withheld()  # (460,) what the second model was trained on
second = language_model("facts_withheld", train[kept_rows])
then = torch.stack([second(**x)[0, -1].softmax(-1)[answer] for (x, _), answer in zip(queries, answers, strict=True)])
lost = (sure.log() - then.log()).detach()  # (40,) nats
even, odd = slice(0, None, 2), slice(1, None, 2)
for half, gone in ((even, "the paraphrases"), (odd, "the decoys")):
    print(f"without {gone:15}: probability of the answer {bootstrap(sure[half]):.3f}, then {bootstrap(then[half]):.4f}")
    print(f"    the log-likelihood loses {bootstrap(lost[half]):.2f} nats")
assert then[even].max() < 0.01 and then[odd].min() > 0.8, "the paraphrases, and not the decoys, should be the source"

# %% [markdown]
# Without its paraphrases not one fact is known any more; without its decoys each is known as well as before. So the paraphrases *are* the source, and the decoys are not.
# (One training, twenty facts in each half; the intervals are over facts.) Now the methods can be judged: whoever ranks the paraphrases first has found what made the model
# answer.
#
# ## Counting words
#
# The first method to beat has no model in it. BM25 ([`bm25`](../inflib/baselines.py)) scores a sentence by the words it has in common with the query, rare
# ones more. Where the answer is told in the question's own words, as it is for the *told* facts, it is perfect. Then ask for
# paraphrases: how many of the two are among the first two? among the first four? and what is their mean rank of 460?

# %%
from inflib.baselines import bm25

texts = [text.split() for text in train.texts]
truth = data.answers()  # (40, 460) bool: the two paraphrases of every asked fact
verbatim = data.answers(range(40)) & (data.wording == 0)
print(int(truth.sum()), "paraphrases to find among", len(texts))


def ranks_of(scores, relevant):
    """The mean rank of each query's relevant sentences, 1 being the best, ties by index, (Q,)."""
    places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    return (places * relevant).sum(1) / relevant.sum(1)


# %%
told = bm25(texts, [data.facts[k].told(0).split() for k in range(40)])
words = bm25(texts, [data.facts[k].told(0).split() for k in asked])
print(f"told in the question's words: first for {recall_at(told, verbatim, 1).mean():.2f} of 40 facts")
at_two, at_four = (recall_at(words, truth, k).mean() for k in (2, 4))
print(f"paraphrased: recall@2 {at_two:.2f}, recall@4 {at_four:.2f}, mean rank {ranks_of(words, truth).mean():.1f}")
assert recall_at(told, verbatim, 1).mean() == 1 and at_two < 0.1, "has a wording changed?"
assert at_four == 1, "the decoys take two places, the paraphrases should take the next two"

# %% [markdown]
# Perfect where words overlap. Where the same thing is said otherwise, the two decoys come first every time. The two paraphrases come right after
# them, as nothing else has both names.
#
# So read what follows with care: at two, BM25 finds nothing, and that is our doing. At four it finds all. The
# question of this notebook is whether a method can tell the source from the decoys. It is not whether it beats word counting in general.
#
# ## Asking the model
#
# Now EK-FAC, on all linear layers, with labels drawn from the model. The index keeps every training sentence's gradient in the
# eigenbasis, so that many dampings can be tried on one pass. K-FAC and the dot product are answered from the same index
# ([`TrainIndex.scores`](../inflib/index/exact.py)).

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
customary = damping_of(curvature, 0.1)
first_look = contribution(index.scores(prepared, damping=customary), len(train))  # (40, 460) nats
fresh = influence(model, objective, batches, queries[:1], curvature, customary) / len(train)
assert torch.allclose(fresh, first_look[:1], atol=1e-10), "the index should give what a fresh pass gives"

# %% [markdown]
# One answer in full, at the customary damping of a tenth of the mean eigenvalue, with a star where the sentence tells the fact. The number is the
# contribution: what log p of the answer is expected to lose, in nats, without the sentence. (The order is meant. What the second training says of the size comes later.) Read the sentences without a star too: what do they have to do with
# the question?

# %%
print("question:", fact.told(0))
for n in first_look[0].argsort(descending=True, stable=True)[:7].tolist():
    print(f"{first_look[0, n]:+7.2f}  {'*' if truth[0, n] else ' '} {train.texts[n]}")
print(f"recall@2 of this query: {recall_at(first_look[:1], truth[:1])[0]:.1f}")

# %% [markdown]
# The two sentences that tell the fact contribute half a nat each, five times as much as whatever does not name Nasak. Neither decoy is among the
# first seven. But before them comes a sentence about Nasak's horse, so that of the two highest one tells the fact: this query's recall@2 is one half.
#
# Did the horse, too, teach the model to say *Nasak*? One can tell oneself that it did. Below a third model, which never read of the horse, answers that.
#
# ## A fair comparison
#
# Every method has a dial: EK-FAC and K-FAC their damping, BM25 its two constants, TracIn the choice of checkpoints. (TracIn is the dot product
# summed over checkpoints of the training run, each times its learning rate: [`tracin`](../inflib/baselines.py).) Whoever turns a dial until the result is good has
# measured nothing.
#
# One dial was turned before this notebook began, and with the truth at hand: the model's **weight decay**. `data/README.md` has the table
# (`python data/build_text_checkpoints.py --sweep` prints it). Without it the model answers as surely, and EK-FAC finds next to nothing at the customary damping. EK-FAC's recall@2 over all 40 facts:
#
# | weight decay | probability of an asked answer | damping 0.1 | damping 0.001 |
# |---|---|---|---|
# | 0 | 0.952 | 0.037 | 0.450 |
# | 0.006 (ours) | 0.893 | 0.838 | 0.938 |
#
# What the other methods find without weight decay we have not measured. So what follows holds for this model.
#
# From here on all are treated alike. The protocol is announced here, before any result: **each dial is chosen by recall@2 on the even facts, and reported on the
# odd ones.** The dampings are the same numbers for EK-FAC and K-FAC; of equal choices the first in the list wins. Everything after this section
# uses the chosen damping and the odd facts alone.

# %%
from inflib.baselines import tracin

multiples = [10.0**-k for k in range(7)]
dials = {
    method: {f"{x:g} · mean Λ": index.scores(prepared, methods[method], damping_of(curvature, x)) for x in multiples}
    for method in ("EK-FAC", "K-FAC")
}

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
each_epoch = sum(dials["TracIn"][f"epoch {e}"] for e in kept)
assert torch.allclose(dials["TracIn"]["all three"], each_epoch, atol=1e-8), "TracIn is a sum over checkpoints"

# %%
chosen = {}
for method, some in dials.items():
    chosen[method] = max(
        some, key=lambda what: recall_at(some[what], truth)[even].mean()
    )  # max keeps the first of equals
reported = {method: recall_at(dials[method][what], truth)[odd] for method, what in chosen.items()}
for method, what in chosen.items():
    table = dials[method][what]
    four, rank = recall_at(table, truth, 4)[odd].mean(), ranks_of(table, truth)[odd].mean()
    print(f"{method:12} recall@2 {bootstrap(reported[method]):.3f}   at 4 {four:.3f}   mean rank {rank:5.1f}   {what}")
assert reported["EK-FAC"].mean() >= 0.9, "EK-FAC should find nine of ten paraphrases"
assert reported["BM25"].mean() < 0.1 and reported["dot product"].mean() < 0.2, "the decoys mislead these two"

# %%
for rival in ("TracIn", "K-FAC", "cosine"):
    print(f"recall@2 of EK-FAC minus that of {rival:7} {bootstrap(reported['EK-FAC'] - reported[rival]):+.3f}")
assert reported["TracIn"].mean() >= reported["EK-FAC"].mean(), "by the announced protocol TracIn comes first here"

# %% [markdown]
# By the announced protocol **TracIn wins**, by one paraphrase of forty; the interval of the difference holds zero. EK-FAC and K-FAC follow, and
# the interval of their difference begins at zero: no claim that the correction helps here. (All this is one corpus and one training. The intervals are over twenty facts; one of no width says that all twenty came out alike.) BM25 has the paraphrases at ranks three and four, as it must. The dot
# product has them nowhere: long gradients win whatever they are about. Divided by its norms, the cosine, it finds exactly one of each two.
#
# So much for the table. Now three things that it does not say. What did the choices give that were not chosen? K-FAC's damping is the end of the list: what do smaller
# ones give? And the curvature is fitted on labels that were drawn once: what do other draws give, each with its damping chosen anew?


# %%
def halves(scored):
    """recall@2 on the even and on the odd half."""
    recall = recall_at(scored, truth)
    return f"{recall[even].mean():.3f}/{recall[odd].mean():.3f}"


for method in ("EK-FAC", "K-FAC", "TracIn"):
    print(f"{method:7}", "  ".join(f"{what.split(' ·')[0]}: {halves(some)}" for what, some in dials[method].items()))
for x in (1e-7, 1e-8, 1e-9):
    print(f"K-FAC at {x:g}: {halves(index.scores(prepared, methods['K-FAC'], damping_of(curvature, x)))}")
late = [recall_at(dials["TracIn"][f"epoch {e}"], truth).mean() for e in (15, 50)]
assert max(late) < 0.6, "later epochs should be poor"


# %%
def with_labels(seed):
    """EK-FAC's recall on the odd half, fitted on labels drawn from this seed, at the damping best on the even half."""
    own = ekfac(model, objective, batches, layers, seed=seed)
    drawn = TrainIndex.build(model, objective, batches, own)
    asking = drawn.prepare(model, objective, queries)
    tried = [recall_at(drawn.scores(asking, damping=damping_of(own, x)), truth) for x in multiples]
    return float(max(tried, key=lambda recall: recall[even].mean())[odd].mean())


draws = [with_labels(seed) for seed in (1, 2)]
print("EK-FAC, two other draws of the labels:", *(f"{recall:.3f}" for recall in draws))
assert min(draws) >= 0.9, "nine of ten paraphrases should be found whatever labels are drawn"

# %% [markdown]
# *TracIn* is as good as EK-FAC **if** it is taken at epoch 5. At epoch 15 its recall falls to a half, at epoch
# 50 to a fifth. On a corpus without a known truth, who would have told us to take epoch 5? The same must be asked of every dial here.
#
# *EK-FAC and K-FAC* need a damping, and here a small one is better. K-FAC at dampings smaller than any in its list finds no more. EK-FAC's 0.950 is one draw of the
# labels; two other draws give 0.925.
#
# How much hangs on the damping? The figure shows both halves. The vertical position of the grey lines is what the
# methods without a damping reach.

# %%
figure, ax = plt.subplots()
for method, colour in (("EK-FAC", plots.BLUE), ("K-FAC", plots.ORANGE)):
    for half, style in ((even, "-"), (odd, "--")):
        values = [float(recall_at(scored, truth)[half].mean()) for scored in dials[method].values()]
        where = "even, chosen on" if half is even else "odd, reported"
        ax.plot(multiples, values, style, color=colour, marker="o", label=f"{method}, {where}")
        assert method == "K-FAC" or values == sorted(values), "more damping should not help EK-FAC here"
    missed = 1 - recall_at(dials[method]["0.1 · mean Λ"], truth).mean()
    print(f"{method:6} misses {missed:.2f} of the 80 paraphrases at 0.1")
for method in ("cosine", "dot product"):
    level = float(recall_at(dials[method][""], truth).mean())
    ax.axhline(level, color=plots.GREY, linewidth=0.8, linestyle=":")
    ax.text(1.0, level + 0.015, method, ha="right", fontsize=8, color=plots.GREY)
ax.set(xscale="log", xlabel="damping / mean eigenvalue", ylabel="recall@2 of the paraphrases", ylim=(-0.03, 1.03))
_ = ax.legend(loc="center left", bbox_to_anchor=(0.0, 0.28))

# %%
for x in (10, 100):  # to the right of the figure
    far = recall_at(index.scores(prepared, damping=damping_of(curvature, x)), truth)
    print(f"EK-FAC at {x} times the mean eigenvalue: recall@2 {far.mean():.2f}")
assert far.mean() < 0.2, "with so much damping a layer-wise dot product should be left"

# %% [markdown]
# For EK-FAC more damping never gives more recall, on neither half. As λ grows, $(C+\lambda I)^{-1}$ tends to a single number in each layer, whatever $C$ is. What is left is a dot product with
# weighted layers, and that finds as little as the dot product does: to the right of the figure, at 100 times the mean eigenvalue, next to nothing. For K-FAC the same holds up to 0.01; from there to 1 its recall rises again by one paraphrase in each half. At the customary 0.1 EK-FAC misses a
# sixth of the paraphrases, K-FAC a fifth. Below 0.001 the damping hardly matters for EK-FAC; K-FAC gains until 1e-6.
#
# Notebook 09 asks whether small dampings are also better at predicting what retraining does. Finding a fact is another task. A first glance is possible here, for we have
# retrained once. What did EK-FAC predict for the sentences that the second model never read, and what became of the answers?

# %%
best = float(chosen["EK-FAC"].split()[0])  # the multiple that the even facts chose
λ = damping_of(curvature, best)
nats = contribution(index.scores(prepared, damping=λ), len(train))  # (40, 460)
gone = data.withheld()
for half, what in ((even, "paraphrases"), (odd, "decoys")):
    predicted = nats[half][:, gone].sum(1)
    order = rank_correlation(predicted, lost[half])
    print(
        f"without the {what:11}: predicted loss {bootstrap(predicted):+.2f} nats, actual {bootstrap(lost[half]):+.2f}",
        end="; ",
    )
    print(f"rank correlation over facts {order:+.2f} (chance: ±{1 / 19**0.5:.2f})")
assert nats[even][:, gone].sum(1).min() > 1 > nats[odd][:, gone].sum(1).mean(), "paraphrases should count, decoys not"

# %% [markdown]
# The direction is right: the paraphrases were predicted to matter and did, the decoys were not and did not. *Which* facts would lose most was not predicted. With twenty facts that is no more than a warning;
# notebook 09 asks it properly.
#
# ### One sentence at a time
#
# But that was two sentences of each fact at once, and a contribution is about *one*. So a third model was trained without 30 sentences. Of each *odd* fact it read one paraphrase and not the other. Of the *even* ones it read
# both, but not what names the person alone, where there is such a sentence: Nasak's horse is one of these ten. The predictions stand beside it at three dampings, for the size of a prediction depends on that dial.

# %%
left_out = data.halved()  # (460,)
third = language_model("facts_halved", train[~left_out])
still = torch.stack([third(**x)[0, -1].softmax(-1)[answer] for (x, _), answer in zip(queries, answers, strict=True)])
missed = (sure.log() - still.log()).detach()  # (40,) nats
people = [data.facts[k].person for k in asked]
mentions = torch.tensor([[who in words_of for words_of in texts] for who in people]) & left_out & ~truth  # (40, 460)
named = mentions.any(1) & (torch.arange(40) % 2 == 0)  # ten of the even facts
for which, group, what in (
    (named, mentions, "what names the person alone"),
    (odd, truth & left_out, "one paraphrase of two"),
):
    actual = missed[which]
    print(
        f"without {what:27} the answer loses {bootstrap(actual):+.3f} nats ({actual.min():+.3f} to {actual.max():+.3f})"
    )
    for x in (best, 0.1, 1.0):
        at_x = contribution(index.scores(prepared, damping=damping_of(curvature, x)), len(train))
        print(f"    predicted at damping {x:5g}: {bootstrap((at_x * group)[which].sum(1)):+.2f}")
horse = train.texts.index("the horse of Nasak was grey")
print(f"Nasak's horse: predicted {nats[0, horse]:+.2f}, actual {missed[0]:+.3f}")
assert missed[named].abs().max() < 0.05, "without a mention of the name alone, the answers should stay"
assert 0.05 < missed[odd].mean() < 0.4 < nats[odd][:, left_out].sum(1).mean(), "one paraphrase is missed, by little"

# %% [markdown]
# So the sentence that stood *first* in our list is a false positive. Without its horse the model says *Nasak* as before. And one paraphrase taken away costs a tenth of a nat, where EK-FAC predicts more than twenty times as much at the
# damping that finds most, and still several times as much at the customary one. With both gone, the answer loses more than predicted. The two stand in for each other, which no sum of single contributions can say. **EK-FAC's list is worth
# reading for its order, its nats are none, and not every sentence at its top was needed.** (One training; the numbers in brackets are over facts.)
#
# ## Which words, which layers?
#
# A sentence's influence is a sum over its predicted words [36] and over layers [30]; both splits add up exactly. First the words
# ([`output_tokens`](../inflib/tokens.py)). For six of the odd
# questions we colour the stronger of the two paraphrases by the contribution of each *prediction*: training on that word, given all
# before it. (Orange is positive, blue negative, on one scale for all six.) Look for where the colour is.

# %%
from inflib.tokens import output_tokens

asked_odd, truth_odd, nats_odd = asked[odd], truth[odd], nats[odd]
rows = []
for q in range(6):
    n = int(nats_odd[q].where(truth_odd[q], 0).argmax())
    one = output_tokens(model, objective, train[[n]].batches(1), queries[odd][q : q + 1], curvature, λ)[0, 0] / len(
        train
    )
    length = len(train.sequences[n])
    assert torch.allclose(one.sum(), nats_odd[q, n], atol=1e-8), "the words should add up to the sentence"
    rows.append((train.vocabulary.pieces(train.sequences[n]), [0.0, *one[: length - 1].tolist()]))
_ = plots.heated_texts(rows, captions=[data.facts[k].told(0) for k in asked_odd[:6]])
share = torch.tensor([values[-1] / sum(values) for _, values in rows])
print(f"the person's name, the last word, holds {share.min():.2f} to {share.max():.2f} of the contribution")
assert share.min() > 0.9, "most of the influence should lie in the prediction of the name"

# %% [markdown]
# In these six, in one word: the person's name, where the model learned to say it. What is predicted on the way has next to no influence on this question.
#
# Then the layers. On the left, what each contributes to the influence of the true paraphrases; on the right, what happens when
# that layer alone is asked: its recall. Mind that the left side is EK-FAC's account. Notebook 06 had exact $G$ beside it, and found the split by layer to be another.

# %%
by_layer = index.scores(prepared, damping=λ, keep=("layer",)) / len(train)  # (40, 460, 13)
split = by_layer[odd]
assert torch.allclose(split.sum(-1), nats_odd, atol=1e-10), "layers should add up to the total"
carried = split[truth_odd].sum(0) / nats_odd[truth_odd].sum()
alone = {layer: recall_at(split[..., k], truth_odd) for k, layer in enumerate(curvature.layers)}
on_even = {layer: recall_at(by_layer[even][..., k], truth[even]).mean() for k, layer in enumerate(curvature.layers)}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
plots.bars(left, dict(zip(curvature.layers, carried.tolist(), strict=True)), what="share of the paraphrases' influence")
_ = plots.bars(right, {layer: float(r.mean()) for layer, r in alone.items()}, what="recall@2 of the layer alone")
assert carried.argmax() == len(carried) - 1, "the unembedding should carry most"

# %%
kinds = {"attention": "attention", "MLPs": "mlp", "unembedding": "unembed"}
together = {}
for kind, part in kinds.items():
    some = [k for k, layer in enumerate(curvature.layers) if part in layer]
    together[kind] = recall_at(split[..., some].sum(-1), truth_odd)
    single = max((layer for layer in alone if part in layer), key=on_even.__getitem__)  # chosen on the even facts
    print(f"{kind:12} share {carried[some].sum():5.2f}, recall@2 {bootstrap(together[kind]):.2f}", end="; ")
    print(f"its best layer alone, {single}: {bootstrap(alone[single]):.2f}")
best_attention = max((layer for layer in alone if "attention" in layer), key=on_even.__getitem__)
assert alone[best_attention].mean() > together["attention"].mean(), "one layer should find more than all eight together"

# %% [markdown]
# By EK-FAC's account the unembedding carries nearly all of the influence, and alone it finds as much as all layers together. The MLPs carry a few per cent, and find half of the paraphrases.
#
# Attention is the odd one. One of its layers, chosen on the even facts, alone finds more than all eight of them together, though the intervals overlap. So neither a layer's share nor its
# group's recall need say what is in it.
#
# (They were all judged at one damping, chosen for the whole model; exercise 3 is fairer to the MLPs.) Grosse et al. use the MLPs alone, and so do we for Shakespeare.
#
# ## Does it survive a change of word order?
#
# Grosse et al. found that influence collapses when a training text says the same in another order, with the
# completion before the prompt. We reverse every training sentence, word by word, and score the reversed ones: what
# *would* training on them do? No retraining is needed to ask that, only their gradients.

# %%
turned = data.reversed()
scored = influence(model, objective, turned.batches(64), queries[odd], curvature, λ)
backwards = contribution(scored, len(train))  # (20, 460)
for order, some in (("as trained", nats_odd), ("reversed", backwards)):
    of_each = (some * truth_odd).sum(1) / 2  # the mean of each question's two
    print(
        f"{order:11} contribution of a paraphrase {bootstrap(of_each):+.2f}, of any other {some[~truth_odd].mean():+.3f}"
    )
print(f"reversed paraphrases that lower the answer: {(backwards[truth_odd] < 0).double().mean():.2f}")
assert backwards[truth_odd].mean() < 0.1 * nats_odd[truth_odd].mean(), "reversed, they should have lost their influence"

# %% [markdown]
# Nothing of it is left; more than half of the reversed paraphrases would even *lower* the answer. All the words are there, and
# *Nasak recalls Benus at stone every* teaches the model who comes before a place. That was not asked.
#
# Grosse et al. report the same for models of up to 52 billion parameters. And models that learned "A is B" fail when asked about B (Berglund et al. 2023). Influence
# here follows the direction in which a text was read.
#
# ## How concentrated is it?
#
# Does a completion come from a few texts or from everything? Two numbers for each query. One is the share of all positive influence that
# the top 1% of sentences hold. The other is the exponent $\gamma$ of the tail, $P(\text{score} > x) \propto x^{-\gamma}$. The smaller $\gamma$, the heavier the
# tail: below 2 the variance of a power law is infinite, below 1 even its mean. Hill's estimate uses the $k$ largest scores
# and has a standard error of $\gamma/\sqrt k$.

# %%
held = top_share(nats_odd, 0.01)
print(f"the top 1% (5 of 460 sentences) hold {bootstrap(held):.2f} of the positive influence")
for k in (10, 20, 40):
    tails = [tail_exponent(row, k) for row in nats_odd]
    mean = sum(tail.exponent for tail in tails) / len(tails)
    print(f"tail exponent from the {k:2} largest: {mean:.2f} on average; for the first query {tails[0]}")
assert held.min() > 0.2, "a few sentences should carry each answer"

# %%
figure, ax = plt.subplots()
for row in nats_odd[::2]:
    positive = row[row > 0].sort(descending=True).values
    ax.plot(range(1, len(positive) + 1), positive, color=plots.BLUE, alpha=0.4, linewidth=1)
highest = nats_odd.sort(dim=1, descending=True, stable=True).values
drop = (highest[:, 1] / highest[:, 2]).median()
both = int((recall_at(nats_odd, truth_odd) == 1).sum())
ax.axvline(2.5, color=plots.GREY, linewidth=0.8, linestyle="--")
ax.text(2.7, 1e-5, "left of this line: the two highest", fontsize=8, color=plots.GREY)
ax.set(xscale="log", yscale="log", xlabel="rank of the sentence", ylabel="positive contribution (nats)")
print(f"the two highest are the two that tell the fact for {both} of {len(nats_odd)} queries")
print(f"from the second to the third sentence the score falls by a factor of {drop:.1f} (median)")
assert drop > 1.5, "the truth should stand apart from what follows"

# %% [markdown]
# (Drawn is every second of the twenty queries.) Very concentrated: of 460 sentences five hold more than half of the positive influence. Behind the two highest the score falls by a
# factor of eight, and what follows is heavy-tailed, with an exponent near 1. How near? The ten largest scores give a
# standard error of a third; forty give a smaller one, and another exponent, because where the tail begins is our choice.
# And a power law has no step in it, whereas our curves begin with one. So: heavy-tailed, yes, as Grosse et al. found; a law, no.
#
# ## Ask for yourself
#
# All of this at once, and questions of your own. Type a prompt and a completion (words of this corpus), or choose a ready one. Colours
# show the words, bars the layers, and a click on a bar keeps that layer alone.
#
# 1. **Choose the gradient dot product.** What does it find?
# 2. **Divide by the gradients' norms.** What changes?
# 3. **Ask for a wrong answer.** Which sentences would have taught it *that*?

# %%
ready = [(data.facts[k].prompt, data.facts[k].person) for k in asked[:6]]
TextBrowser(model, objective, index, train, ready, curvatures=methods, damping=best)

# %% [markdown]
# ## Shakespeare
#
# Last, a text that nobody made up for the purpose. The model reads characters: two blocks of width 128, a context of 128
# characters. It was trained on the two thousand sequences of *Romeo and Juliet* and the third part of *Henry VI*, which ship with the repository.
#
# These are the same lines as for the facts. To keep it short, the curvature is fitted on every eighth sequence, and those 250 are searched. They were not chosen blindly: of the eight ways to take every eighth, this one holds the lines of
# Juliet's that we ask about. The index states its size before it is built.

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
plays = corpus_of("shakespeare", scale)
print(len(plays), "sequences, the first of them:", repr(plays.texts[0][:60]))
double = torch.float64 if scale == "small" else torch.float32
reader = language_model("shakespeare", plays, scale, dtype=double, device=device)
passages = plays[{"small": slice(3, None, 8), "full": slice(None, None, 16)}.get(scale, slice(None))]
reading = passages.batches(32, device=device)
assert len(passages) >= 64, "expected the plays cut into sequences"

# %%
reader_curvature = ekfac(reader, objective, reading, ["blocks.*.mlp.*"])
half = torch.float32 if scale == "small" else torch.float16
print(index_size(reader, reading, reader_curvature, half))

# %%
passage_index = TrainIndex.build(reader, objective, reading, reader_curvature, dtype=half)
lines = [("O Romeo, Romeo! wherefore art thou ", "Romeo?"), ("Good night, good ", "night!"), ("WARWICK:\nThe ki", "ng")]
# NBVAL_IGNORE_OUTPUT
browser = TextBrowser(reader, objective, passage_index, passages, lines, damping=0.1, n_train=len(plays))
assert len(browser.influence.index) == len(passages), "the index holds other passages than those shown"
browser

# %% [markdown]
# How likely does the model find the three completions itself?

# %%
for prompt, then in lines:
    x, y = completion(*(plays.vocabulary.encode(part) for part in (prompt, then)))
    with torch.no_grad():
        said = objective.measure("log_likelihood", reader(**{k: v.to(device) for k, v in x.items()}), y.to(device))
    print(f"log p of {then!r} after {prompt!r}: {float(said):.1f} nats")
assert float(said) > -10, "the last of the three should be the likeliest"

# %% [markdown]
# The three strongest proponents of each of the three completions, coloured by the contribution of each character:

# %%
raised = [(then, row) for prompt, then in lines for row in browser.ask(prompt, then).raised[:3]]
heated = [(row.passage.pieces, np.nan_to_num(row.shown_tokens)) for _, row in raised]
nats_of = contribution(torch.tensor([row.score for _, row in raised]), len(plays)).tolist()  # of all trained on
titles = [
    f"“{then}”   {value:+.2f} nats, order only   {row.passage.place}"
    for (then, row), value in zip(raised, nats_of, strict=True)
]
_ = plots.heated_texts(heated, captions=titles, columns=64)
print(*titles, sep="\n")
_ = browser.ask(*lines[0])  # what the browser above shows at first
first_text = raised[0][1].passage.text
assert np.allclose([row.shown for _, row in raised], nats_of), "browser and figure: one number, over all trained on"
assert scale != "small" or "".join(lines[0]) in first_text, "the line asked about should be its own strongest proponent"

# %% [markdown]
# The model would *not* say *Romeo?* after *O Romeo, Romeo! wherefore art thou*: it gives that next to no probability, and says *the th* itself. Asked all the same what speaks for *Romeo?*, it points at the line itself,
# first of the passages searched. Asked about *Good night, good night!* it points at Juliet saying so. Asked about *ng* after *WARWICK: The ki*, it names first a passage without any king. *Any thing* and *nothing* stand there.
#
# But mind the measure. The model is weak (2.0 nats a character, `data/README.md`). The first query repeats its source letter by letter, and finding *that* needs no model. Nobody knows what the right second passage is, and the lists are as pleasant to read as those of the alternating letters were.
#
# For a GPU, set `scale = "full"` in the first cell: six blocks of width 384, a context of 256 characters, all of the plays, which are then downloaded once (1.1 MB). The model is
# trained when it is first asked for, and kept in the cache; all that follows is the code above.
#
# ## Summary
#
# On letters and digits in turn every method finds the query itself, so that experiment shows that the code runs and no more. On
# invented facts, told only in other words, a second training shows that the paraphrases are the source. Of 40 of them EK-FAC finds 37 to 38 and K-FAC 37, at dampings chosen on other
# facts, in one model whose weight decay was chosen with the truth in view. TracIn finds 39, if one knows which epoch to trust. Word counting is misled at the top, by design, and the plain dot product everywhere.
#
# By EK-FAC's account the influence sits in the prediction of the answering name, mostly in the unembedding. It vanishes when the words are reversed, and a
# handful of sentences holds most of it. Its sizes are none: for one paraphrase left out they were more than twenty times too large, for both too small, and a sentence ranked first was not needed at all. Every dial that was turned here was turned with the truth at hand, which a real corpus
# does not offer.
#
# Next, in notebook 09: whether any of this predicts what happens when a text is really left out.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. What a query is (easy, 10 minutes)
#
# Write `ask(prompt, completion)`: the batch of one, as `influence` takes it, for two strings of words of this corpus. The completion may have
# several words. The prompt's words are read but not predicted: their targets are −100. The check knows three usual mistakes.


# %% jupyter={"source_hidden": true}
@exercise
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
    return f"right: log p = {float(came.detach()):.2f} nats for two words"


# %%
def ask(prompt, completion):
    """Two strings to ({"input_ids", "attention_mask"}, targets), all (1, T)."""
    return ...  # your answer


check_ask(ask)

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

# %% [markdown]
# ### 2. Two answers, one measure (easy, 10 minutes, pencil and paper)
#
# A method puts two decoys first for every query and the two paraphrases right behind them. Another finds one paraphrase at rank 1 for every query, and the
# other at rank 101. Mean recall@2, recall@4 and mean rank order these two methods differently. What is the mean rank of the *second* method's paraphrases?
# And which of the two would you rather use if you read the first four results?


# %% jupyter={"source_hidden": true}
@exercise
def check_mean_rank(answer):
    assert abs(answer - 3.5) > 1e-9, "that is the first method: (3 + 4) / 2"
    assert abs(answer - 102) > 1e-9, "that is the sum of the two ranks: take their mean"
    assert abs(answer - 51) < 1e-9, "the mean of 1 and 101"
    ours = {method: ranks_of(dials[method][what], truth)[odd].mean() for method, what in chosen.items()}
    return f"right: the first method is BM25 with {ours['BM25']:.1f}, the second much like the cosine with {ours['cosine']:.1f}"


# %%
mean_rank = ...  # your number

check_mean_rank(mean_rank)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $(1 + 101)/2 = 51$. By recall@2 the first method has 0 and the second ½; by recall@4 it is 1 against ½; by mean rank 3.5 against 51. Who reads four results should take
# the first, who reads two the second. A measure is a statement about a reader, so name the reader before looking at the results.
#
# ```python
# mean_rank = (1 + 101) / 2
# check_mean_rank(mean_rank)
# ```
# </details>

# %% [markdown]
# ### 3. Fair to the MLPs (harder, 20 minutes)
#
# The bars judged each layer at a damping chosen for all of them. Write `mlps_alone(multiples)`, for the MLP layers alone. Choose the multiple of the mean
# eigenvalue on the even facts (the first of equals), and return it with the recall on the odd facts. `index.scores` takes `layers=`, and
# `relative(0.01)` is a damping of 0.01 times each layer's own mean. Do you expect the MLPs to do without the unembedding?


# %% jupyter={"source_hidden": true}
@exercise
def check_mlps_alone(answer):
    from inflib import relative

    came, recall = answer(multiples)
    mlps = [layer for layer in curvature.layers if "mlp" in layer]
    tried = {x: recall_at(index.scores(prepared, damping=relative(x), layers=mlps), truth) for x in multiples}
    on_odd = max(multiples, key=lambda x: tried[x][odd].mean())
    assert came in multiples, "return the multiple first, then the recall"
    assert not (recall == tried[on_odd][odd].mean() != tried[came][odd].mean()), "chosen on the half that is reported"
    assert came == max(multiples, key=lambda x: tried[x][even].mean()), "choose on the even facts, the first of equals"
    same = torch.isclose(torch.as_tensor(recall), tried[came][odd].mean())
    assert same, "report the odd facts, and the MLP layers alone"
    return (
        f"right: at {came:g} the MLPs alone find {float(recall):.2f}, at 0.001 they find {tried[0.001][odd].mean():.2f}"
    )


# %%
def mlps_alone(multiples):
    """The multiple chosen, and the recall@2 on the odd facts at it."""
    return ...  # your answer


check_mlps_alone(mlps_alone)

# %% [markdown]
# <details><summary>Solution</summary>
#
# With a damping of their own, far smaller, the MLPs find most paraphrases without the unembedding: compare the two numbers of the check's line. And the choice sits at the end of the list we tried, so a wider one should be tried.
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

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - N. Rimsky 2023, *Influence functions: why, what and how*: the experiment on letters and digits. Its program: [nrimsky/InfluenceFunctions](https://github.com/nrimsky/InfluenceFunctions).
# - E. Akyürek et al. 2022, *Towards Tracing Factual Knowledge in Language Models Back to the Training Data*: BM25 is hard to beat.
# - G. Pruthi, F. Liu, S. Kale, M. Sundararajan 2020, *Estimating Training Data Influence by Tracing Gradient Descent*: TracIn.
# - S. Robertson, H. Zaragoza 2009, *The Probabilistic Relevance Framework: BM25 and Beyond*.
# - B. Hill 1975, *A Simple General Approach to Inference About the Tail of a Distribution*.
# - L. Berglund et al. 2023, *The Reversal Curse*: models trained on "A is B" do not learn "B is A".
