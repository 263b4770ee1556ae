# %% [markdown]
# # 06 · What changes for a language model?
#
# **The question.** So far an example was one input with one label, and a layer saw it once. A language model reads a
# sequence of tokens, predicts a token at every place, and uses each of its layers at every place. What becomes of the
# loss, the labels, the factors $A$ and $S$, the eigenvalues $\Lambda$, and the score? And can an influence be traced
# to a single *token*?
#
# **What you need to know.** Symbols: [one table](notation.md). Notebooks 03 to 05: $D\theta=g a^\top$, labels drawn from the model, $S\otimes A$, and
# $\Lambda=\mathbb E[(Q_S^\top D\theta\,Q_A)^2]$. What a transformer is made of: attention (q, k, v, o), a multilayer
# perceptron in each block, an unembedding. Numbers in brackets are the equations of Grosse et al. 2023.
#
# **Time.** About 60 minutes to read; it runs in less than a minute on two CPU cores.

# %%
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn

from inflib.lab import exercise
from inflib.widgets import plots

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # before any model is built
plots.use_style()

# %% [markdown]
# ## A language small enough
#
# Again the truth should be within reach: the exact $G$ must fit in memory, so the language has to be tiny. It has eight
# words. Cats mostly eat fish, dogs mostly eat meat, and anybody may see anything. A sentence stands between two full
# stops, and may or may not use the article.

# %%
import random


def sentence(dice):
    animal, favourite, other = dice.choice([("cat", "fish", "meat"), ("dog", "meat", "fish")])
    if dice.random() < 0.5:
        rest = "eats " + (favourite if dice.random() < 0.8 else other)
    else:
        rest = "sees " + dice.choice(["cat", "dog", "the cat", "the dog", "fish", "meat"])
    return f". {dice.choice(['', 'the '])}{animal} {rest} ."


def sixty(seed):
    dice = random.Random(seed)
    return [sentence(dice) for _ in range(60)]


texts = sixty(0)
print(*texts[:5], sep="\n")
assert {len(text.split()) for text in texts} == {5, 6, 7}, "sentences of three lengths, full stops included"

# %% [markdown]
# Every token but the first is predicted from those before it. So a sequence of $T+1$ tokens is $T$ questions: the
# *inputs* are all tokens but the last, the *targets* all tokens but the first. `token_batches` makes that shift, fills
# shorter sequences up to the longest of their batch, and marks what is filling. Read the columns of one sentence from
# top to bottom:

# %%
from inflib import token_batches
from inflib.lab import words

vocabulary = words(" ".join(texts))
sequences = [vocabulary.encode(text) for text in texts]
N, symbols = len(sequences), len(vocabulary)
((inputs, targets),) = token_batches(sequences, N)  # one batch of all sixty
data = token_batches(sequences, 20)  # the same in three batches
there = inputs["attention_mask"].bool()  # (60, 6): False at padding
for name, row in (inputs | {"targets": targets}).items():
    print(f"{name:14}", "".join(f"{number:6d}" for number in row[0].tolist()))
print(f"{'predict':14}", "".join(f"{vocabulary.symbols[k]:>6}" if k >= 0 else "     -" for k in targets[0].tolist()))
assert (targets[:, :-1] == inputs["input_ids"][:, 1:])[there[:, 1:]].all(), "the target is the NEXT token: shift by one"

# %% [markdown]
# The two kinds of marks, the 0 in the mask and the −100 among the targets, get a section of their own below.
#
# ## A transformer small enough
#
# Two blocks, two heads, six numbers a token, `inflib.lab`'s transformer as in notebook 08, only smaller. We follow all
# of its linear layers. What is left, the embeddings and the gains of the normalisations, counts as fixed. (The paper
# follows the perceptrons alone.)

# %%
from inflib import NextToken
from inflib.lab import train, transformer

objective = NextToken()
model = transformer(symbols, context=6, width=6, heads=2, hidden=8, blocks=2, dtype=torch.float64)
recipe = dict(epochs=100, batch_size=10, lr=1e-2, weight_decay=5e-3, anneal=True)
train(model, objective, inputs, targets, **recipe, progress=False)
layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
print(len(layers), "layers:", *layers[:6], "and so on to", layers[-1])
assert len(layers) == 2 * 6 + 1, "q, k, v, o, up, down in each block, and the unembedding"

# %%
for prompt in (". the", ". the cat eats", ". the dog eats", ". dog sees"):
    p_next = model(torch.tensor([vocabulary.encode(prompt)]))[0, -1].softmax(-1)
    print(f"{prompt:16}", {w: f"{x:.2f}" for w, x in zip(vocabulary.symbols, p_next.tolist(), strict=True) if x > 0.05})
    if prompt.endswith("eats"):
        favourite, other = p_next[vocabulary.encode("fish meat" if "cat" in prompt else "meat fish")]
        assert favourite > other > 0.01, "the model should know who likes what, and not be too sure of it"

# %% [markdown]
# It has learnt who eats what. To predict the last word it must look back past *eats* to the animal. That is work for
# attention, and attention is what will make tokens hang together.
#
# ## The loss is a sum over tokens
#
# What is the loss of *one example*, that is, of one sequence? Training code usually takes the mean over all tokens of
# a batch. Here it has to be
#
# $$\ell(x) = -\sum_{t} \log p(x_{t+1}\mid x_{\le t}), \qquad [22]$$
#
# the sum over the tokens of the sequence $x$. By the chain rule of probability this is $-\log p(x)$, the negative log-likelihood of the whole sequence.


# %%
def log_likelihoods(ids):
    """log p(token t+1 | tokens ≤ t) of one sequence, (T,)."""
    ids = torch.tensor(ids)
    return model(ids[None, :-1])[0].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


losses = objective.loss(model(**inputs), targets)  # (60,)
by_hand = torch.stack([-log_likelihoods(ids).sum() for ids in sequences])
assert torch.allclose(losses, by_hand, atol=1e-12), "a mean? targets not shifted? padding in the loss?"

# %% [markdown]
# Is it *really* a likelihood? Then $e^{-\ell}$, added up over everything that can follow the full stop, makes one.
# With eight words there are 512 continuations of three tokens. Try the mean over tokens beside it:

# %%
every = torch.cartesian_prod(*[torch.arange(symbols)] * 3)  # (512, 3)
ids = F.pad(every, (1, 0), value=vocabulary.encode(".")[0])
each = objective.loss(model(ids[:, :-1]), ids[:, 1:]).detach()  # (512,)
print(f"Σ exp(−sum over tokens) = {(-each).exp().sum():.4f}   Σ exp(−mean over tokens) = {(-each / 3).exp().sum():.4f}")
assert abs((-each).exp().sum() - 1) < 1e-12, "a distribution over sequences: is a token left out, or counted twice?"

# %% [markdown]
# This is not pedantry. The identity $F=G$ of notebook 03 was derived from $\sum_y e^{-\ell(y)}=1$. For a sum it
# holds; for a mean it does not, and we shall see by how much as soon as there is a $G$.
#
# ## The exact G of a sequence model
#
# A sequence is *one* example with $8\,T$ outputs: its logits for eight words at each of $T$ places. The loss is a sum over places, and
# no term contains the logits of two of them. So $H_{\rm out}$ has a block $\mathrm{diag}(p_t)-p_tp_t^\top$ for every
# token, and zeros between:
#
# $$G=\frac1N\sum_n\sum_t J_{nt}^\top\big(\mathrm{diag}(p_{nt})-p_{nt}p_{nt}^\top\big)J_{nt}.$$
#
# Here it is with `torch.func`: one sentence at a time, without padding, masks, hooks or labels. (Its plain attention,
# `MATH`, can be differentiated any number of times; the fast kernels cannot.)

# %%
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

weights = {name: w.detach() for name, w in model.named_parameters() if name.rpartition(".")[0] in layers}


def logits(weights, ids):
    return functional_call(model, weights, (ids[None],))[0]  # (T, 8)


def by_layer(tensors):  # {parameter: (..., *shape)} → (..., D), row-major, the bias as last column
    parts = [torch.cat([tensors[f"{k}.weight"], tensors[f"{k}.bias"][..., None]], -1) for k in layers]
    return torch.cat([part.flatten(-2) for part in parts], -1)


with sdpa_kernel(SDPBackend.MATH):
    J = [by_layer(jacrev(logits)(weights, torch.tensor(ids[:-1]))).detach() for ids in sequences]  # 60 of (T, 8, D)
p = [logits(weights, torch.tensor(ids[:-1])).softmax(-1).detach() for ids in sequences]  # 60 of (T, 8)


# %%
def gauss_newton_by_hand(scale):
    """Σ_n scale(T_n) J_nᵀ H_out J_n / N, (D, D)."""
    total = torch.zeros(J[0].shape[2], J[0].shape[2])
    for J_n, p_n in zip(J, p, strict=True):
        H_out = torch.diag_embed(p_n) - p_n[:, :, None] * p_n[:, None, :]  # (T, 8, 8)
        total += scale(len(p_n)) * torch.einsum("tax,tab,tby->xy", J_n, H_out, J_n) / N
    return total


G = gauss_newton_by_hand(lambda T: 1)
print(f"G {tuple(G.shape)}, trace {G.trace():.1f}")

# %%
from inflib import gauss_newton

exact = gauss_newton(model, objective, data, layers, progress=False)
spans, at = {}, 0
for name, (o, i) in exact.shapes.items():
    spans[name], at = slice(at, at + o * i), at + o * i  # where a layer's parameters stand
assert torch.allclose(exact.to_dense(), G, atol=1e-12), "does a padded position count? are J's axes (token, class)?"

# %% [markdown]
# `inflib.gauss_newton` took padded batches and a mask, and agrees to twelve digits. Now the promised number. Suppose the
# loss were the *mean* over a sequence's $T_n$ tokens. Its gradients would shrink by $1/T_n$ and their second moment by
# $1/T_n^2$, but the Hessian by $1/T_n$ only:

# %%
G_mean, F_mean = gauss_newton_by_hand(lambda T: 1 / T), gauss_newton_by_hand(lambda T: 1 / T**2)
off = (F_mean - G_mean).norm() / G_mean.norm()
best = (F_mean * G_mean).sum() / F_mean.square().sum()  # the multiple of F_mean that is closest to G_mean
print(f"mean loss: ‖F − G‖ / ‖G‖ = {off:.2f}, and {(best * F_mean - G_mean).norm() / G_mean.norm():.2f} once rescaled")
assert off > 0.5, "for a mean over tokens the Fisher is not the Gauss-Newton Hessian"

# %% [markdown]
# Most of the error is a factor, about the typical length, and damping relative to the mean eigenvalue forgives a factor. Lengths
# differ, though, and 6% stay that no factor mends. And a mean divides the gradient of every training sequence by
# its own length, so that in the scores long ones count for less than their part of the objective.
#
# ## What to ask: log p(completion | prompt)
#
# The measurement is the log-likelihood of a completion, given a prompt [24] (the paper calls it $f$). The score of training sequence $n$ is
#
# $$m(\theta)=\log p({\rm completion}\mid{\rm prompt}),\qquad
# {\rm score}_n=-\nabla m^\top(G+\lambda I)^{-1}\nabla\ell_n. \qquad [24, 25]$$
#
# In tensors that is the loss again, with the prompt's own tokens taken out of it: their targets are −100, "not asked".

# %%
from inflib import completion


def ask(prompt, answer):
    return completion(vocabulary.encode(prompt), vocabulary.encode(answer), context=6)


# %%
query_inputs, query_targets = ask(". the cat eats", "meat .")
print("input_ids", query_inputs["input_ids"][0].tolist(), "  targets", query_targets[0].tolist())
m = objective.measure("log_likelihood", model(**query_inputs), query_targets)
by_hand = log_likelihoods(vocabulary.encode(". the cat eats meat ."))[-2:].sum()
assert torch.allclose(m, by_hand), "the two tokens of the completion, the prompt's are not in m"
print(f"log p('meat .' | '. the cat eats') = {m.item():.3f}")

# %% [markdown]
# The last token, the full stop, is asked about and never read. The first three are read and not asked about.
#
# Ask several things, and score the training sentences with the exact $G$ first. As in the whole course we show the **contribution**, the score over $N$:
# what the answer's log-likelihood is expected to lose, in nats, if the sentence is taken away. Many sentences occur more than once. Copies have
# the same gradient, hence the same score, so the table shows each sentence once, with its number of copies. Guess before you look: which
# sentences taught that this cat eats *meat*, and which speak against it?

# %%
questions = {
    ". the cat eats": "meat .",
    ". the dog eats": "meat .",
    ". dog": "eats",
    ". the dog sees": "cat",
    ". cat": "sees the dog .",
}
queries = [ask(*question) for question in questions.items()]  # five batches of one
assert [(y >= 0).sum().item() for _, y in queries] == [2, 2, 1, 1, 4], "as many targets as the answer has words"

# %%
from inflib import contribution, damping_of, influence

damping = damping_of(exact, 0.1)  # {layer: λ}, the same for every method


def contributions(curvature, asked_for=queries, **options):
    scores = influence(model, objective, data, asked_for, curvature, damping, progress=False, **options)
    return contribution(scores, N)  # (queries, 60, ...), in nats


def ranking(row):
    """{sentence: contribution}, from the strongest proponent to the strongest opponent, copies once."""
    order = row.argsort(descending=True, stable=True).tolist()
    return {texts[n]: row[n].item() for n in order}


truth = contributions(exact)
ranked = list(ranking(truth[0]).items())
for text, value in ranked[:4] + ranked[-4:]:
    print(f"{value:+7.3f}  {text:24} × {texts.count(text)}")
assert ranked[0][0].endswith("cat eats meat ."), "the top proponent should say what was asked"

# %% [markdown]
# Two copies stand far above everything, one sentence far below, and the rest near zero. Is +0.372 the right *size*? This
# model has more parameters than it needs for 60 sentences, and has come close to a table of what follows what. In such
# a table influence is counting. After *the cat eats* comes *meat* 2 times of 9, so $m=\log 2-\log 9$. Counting *meat* a little less
# costs it $\frac12-\frac19$ a count, and counting *fish* less $-\frac19$:

# %%
meat, fish = (texts.count(f". the cat eats {food} .") for food in ("meat", "fish"))
counted = {"meat": 1 / meat - 1 / (meat + fish), "fish": -1 / (meat + fish)}
for food, number in counted.items():
    value = ranking(truth[0])[f". the cat eats {food} ."]
    print(
        f"{food}: {texts.count(f'. the cat eats {food} .')} copies, by counting {number:+.3f}, by influence {value:+.3f}"
    )
    assert abs(value / number - 1) < 0.15, "counting and influence disagree: sum or mean over tokens? the factor N?"

# %% [markdown]
# An independent check of size and sign. Exercise 5 asks what taking a whole sentence away would
# do. Now to what this costs for a model whose $G$ cannot be written down.
#
# ## The gradient of a sequence
#
# A linear layer with weight $W$ meets a sequence $T$ times, $z_t = W a_t$. Each use adds its path to the chain
# rule (exercise 2 of notebook 03):
#
# $$D\theta=\sum_{t=1}^{T} g_t a_t^\top,\qquad g_t=\frac{\partial \ell}{\partial z_t}. \qquad [26]$$
#
# `capture` has had the axis $T$ all along.

# %%
from inflib import capture

pairs = capture(model, objective, inputs, targets, layers)
for name in layers:
    a, g = pairs[name]  # (60, 6, i), (60, 6, o)
    found = torch.einsum("nto,nti->noi", g, a)[7]  # of sentence 7
    module = model.get_submodule(name)
    truth_7 = torch.autograd.grad(-log_likelihoods(sequences[7]).sum(), [module.weight, module.bias])
    assert torch.allclose(found[:, :-1], truth_7[0], atol=1e-12), f"{name}: Σ_t g_t a_tᵀ, not (Σ g)(Σ a)ᵀ"
    assert torch.allclose(found[:, -1], truth_7[1], atol=1e-12), f"{name}: the bias's gradient is Σ_t g_t"
print({name: tuple(pairs[name].g.shape) for name in layers[:2]}, "all 13 layers agree with autograd")

# %% [markdown]
# Look at what $g_t$ *is*. It is not the gradient of the loss at token $t$. It is the gradient of the whole sum with
# respect to the layer's output at position $t$. Attention carries that output to later positions, where more is
# predicted.
#
# Take the sum apart: one backward pass for each predicted token. In the pictures below a row is a
# predicted token, a column the position whose $g$ it reaches; each picture has a scale of its own. In which layers does a prediction
# reach only its own position?

# %%
example = texts.index(". the cat sees the dog .")
read, said = (texts[example].split()[k:][:6] for k in (0, 1))
reach = {name: torch.zeros(6, 6) for name in layers}
for t in range(6):
    alone = capture(model, objective, inputs, targets, layers, lambda f, y, t=t: objective.token_losses(f, y)[:, t])
    for name, pair in alone.items():
        reach[name][t] = pair.g[example].norm(dim=1)  # (6,): ‖∂ℓ_t / ∂z_t'‖ for every position t'

# %%
shown = ["blocks.0.mlp.up", "blocks.1.attention.k", "blocks.1.attention.v", "blocks.1.attention.q", "unembed"]
figure, axes = plt.subplots(1, 5, figsize=(10, 2.7))
for ax, name in zip(axes, shown, strict=True):
    plots.matrix(ax, reach[name] / reach[name].max(), name)
    ax.set_xticks(range(6), read, rotation=90)
    ax.set_xlabel("position (word read)")
    ax.set_yticks(range(6), said if ax is axes[0] else [""] * 6)
axes[0].set_ylabel("word predicted")
own = [name for name in layers if (reach[name] - reach[name].diagonal().diag()).max() < 1e-12]
print("only their own position:", *own)
assert own == ["blocks.1.attention.q", "blocks.1.attention.o", "blocks.1.mlp.up", "blocks.1.mlp.down", "unembed"]

# %% [markdown]
# Nothing lies above the diagonal: no prediction reaches a word that comes after it. Below the diagonal the layers
# differ. In the last block a query, the attention's output, the perceptron and the unembedding at position $t$ serve
# the prediction at $t$ and no other. A *key* or a *value* is looked up by every later position. And what the first
# block writes at $t$ passes through the keys and values of the second.
#
# (Two details. The first *row* of the keys is empty: a softmax over one position has nothing to choose, so the first prediction needs no key and no query. The first
# position's key is in use all the same, by every later prediction. And after the second noun the full stop is certain, so its row is pale.)
#
# ## Labels: one for each token
#
# $G$ is the second moment of gradients with labels from the model. For a sequence that means: keep the data's tokens
# as inputs, and at each position draw a label of its own from $p_t$. The drawn labels are not fed back; the "sentence"
# they form need not make sense.
#
# The *exact* expectation runs over $8^T$ ways to label a sequence. But the labels of two tokens are drawn independently,
# and $\mathbb E[\nabla\ell_t]=0$ at each token. So all products of two tokens' gradients vanish on average. It is enough
# to take one token $t$ and one class $c$ at a time, with the seed $s_{tc}=\sqrt{p_{tc}}\,(e_c-p_t)$ at token $t$ and
# zeros elsewhere. That is $8\,T$ backward passes ([`NextToken.seeds`](../inflib/sequences.py)):

# %%
seeds = list(objective.seeds(model(**inputs).detach(), targets))  # 48 of (60, 6, 8): tokens outside, classes inside
assert len(seeds) == 6 * symbols, "a seed for each token and class: all tokens of a class in one pass is another matrix"
passes = [capture(model, objective, inputs, targets, layers, lambda f, y, s=s: (s * f).sum((1, 2))) for s in seeds]


def rows(pairs):
    return torch.cat([pair.matrices().flatten(1) for pair in pairs.values()], 1)  # (60, D)


seeded = torch.stack([rows(one) for one in passes]).reshape(6, symbols, N, -1)  # (6, 8, 60, D)
by_passes = torch.einsum("tcnx,tcny->xy", seeded, seeded) / N
assert torch.allclose(by_passes, G, atol=1e-12), "one token and one class at a time: Σ_tc of squares is exact"
print(len(passes), "backward passes")

# %% [markdown]
# Forty-eight passes are nothing here. With 512 tokens and 50,000 classes it would be 25 million. An obvious saving is
# to seed *all tokens at once*, with one pass for each class. Multiply out what this computes:
#
# $$\Big(\sum_t J_t^\top s_{tc}\Big)\Big(\sum_{u} J_{u}^\top s_{uc}\Big)^\top
# =\underbrace{\sum_t J_t^\top s_{tc}s_{tc}^\top J_t}_{\text{wanted}}
# +\underbrace{\sum_{t\ne u} J_t^\top s_{tc}s_{uc}^\top J_{u}}_{\text{cross-token terms}}.$$
#
# It is the trap of notebook 03 once more, with tokens in the place of classes. Drawn labels are independent from
# token to token and cancel on average. Fixed seeds are the same every time, and nothing cancels.

# %%
at_once = seeded.sum(0)  # (8, 60, D): what one backward pass for each class gives
trap = torch.einsum("cnx,cny->xy", at_once, at_once) / N
trap_error = ((trap - G).norm() / G.norm()).item()
print(f"all tokens at once: relative error {trap_error:.2f}, trace {trap.trace():.0f} where G has {G.trace():.0f}")
assert trap_error > 0.3, "the cross-token terms should be no rounding error"

# %% [markdown]
# The honest saving is to draw: one label a token, one backward pass for the whole sequence, as often as can be
# afforded. This is what `NextToken` does by default.

# %%
for draws in (1, 10, 100):
    drawn = gauss_newton(model, objective, data, layers, labels="sampled", draws=draws, progress=False)
    error = ((drawn.to_dense() - G).norm() / G.norm()).item()
    print(f"{draws:3} draws: relative error {error:.3f}")
assert error < 0.3 * trap_error, "draws must be fresh, and from p at each token: then the error falls as 1/√draws"

# %% [markdown]
# ## Factors as if tokens were independent
#
# Now K-FAC. Put [26] into $\mathbb E[D\theta D\theta^\top]$, with $\otimes$ row by row as in notebook 03:
#
# $$\mathbb E\big[D\theta D\theta^\top\big]=\mathbb E\Big[\sum_{t,u} g_tg_u^\top\otimes a_ta_u^\top\Big]
# \;\overset{(1)}{\approx}\;\mathbb E\Big[\sum_t g_tg_t^\top\otimes a_ta_t^\top\Big]
# \;\overset{(2)}{\approx}\;\underbrace{\mathbb E\Big[\sum_t g_tg_t^\top\Big]}_{S}\otimes\underbrace{\frac{\mathbb E\big[\sum_t a_ta_t^\top\big]}{\mathbb E[T]}}_{A}.$$
#
# Step (1) drops the terms with $t\ne u$. It takes two things to make them vanish: gradients at different positions that are *independent*, and
# gradients whose *mean is zero*. Independence alone would leave $\mathbb E[g_t]\,\mathbb E[g_u]^\top$.
#
# The second holds exactly, for labels from the model. The mean of $\nabla\ell$ over them is the gradient of $-\sum_y p(y)\log p(y\mid\theta)$ with
# $p(y)$ held fixed. That is smallest at the weights which $p$ came from. For the data's labels it does not hold. The first is false wherever attention makes two
# positions serve one prediction.


# %%
def expected_loss(f, y):
    """Each sentence's loss, averaged over labels from the model itself; the weights of that average are held fixed."""
    each = -(f.softmax(-1).detach() * f.log_softmax(-1)).sum(-1)  # (60, 6)
    return (each * (y >= 0)).sum(1)


# %%
average = capture(model, objective, inputs, targets, layers, expected_loss)
largest = max(pair.g.abs().max() for pair in average.values())
print(f"labels from the model: the mean of g is 0 at every position of every layer: {bool(largest < 1e-12)}")
print(f"labels of the data: there is one label, and g reaches {max(pair.g.abs().max() for pair in pairs.values()):.2f}")
assert largest < 1e-12, "E[∇ℓ_t] = 0 when labels are drawn from p_t"

# %% [markdown]
# Step (2) treats gradients as independent of activations, as in notebook 04. Mind the counts, for sentences differ in length. $A$ is a sum over *all
# positions of all sequences*, divided by their number. (The mean of each sequence's own mean would be another matrix.) $S$ is a sum over
# tokens and a mean over *examples*. Their product then has the size of $G$.

# %%
from inflib.kfac import second_moments

A, S, of_means = {}, {}, {}
for name in layers:
    a = passes[0][name].a  # (60, 6, i)
    A[name] = a[there].T @ a[there] / there.sum()  # padding left out
    own_means = [a[n][there[n]].T @ a[n][there[n]] / there[n].sum() for n in range(N)]
    of_means[name] = ((sum(own_means) / N - A[name]).norm() / A[name].norm()).item()
    g = torch.stack([one[name].g for one in passes])  # (48, 60, 6, o)
    S[name] = torch.einsum("knto,kntu->ou", g, g) / N
moments = second_moments(model, objective, data, layers, labels="expected", progress=False)
for name in layers:
    assert torch.allclose(moments.A(name), A[name], atol=1e-12), f"{name}: over examples × tokens, padding left out"
    assert torch.allclose(moments.S(name), S[name], atol=1e-12), f"{name}: summed over tokens, divided by examples"
print(f"the mean of sequences' means would be off by {min(of_means.values()):.0%} to {max(of_means.values()):.0%}")

# %% [markdown]
# The trace tells whether the size is right. Look first at the five layers that reach their own position only, where
# step (1) is no approximation. Then look at the keys.

# %%
size = {k: (A[k].trace() * S[k].trace() / G[spans[k], spans[k]].trace()).item() for k in layers}
alone = {  # Σ_t of each token's own square, as step (1) leaves it
    k: sum((one[k].g.square().sum(-1) * one[k].a.square().sum(-1)).sum() for one in passes).item() / N for k in layers
}

# %%
print(f"{'trace over that of G’s block':30} step (1)  step (2)  S ⊗ A")
for name in layers:
    step_1 = alone[name] / G[spans[name], spans[name]].trace().item()
    print(f"{name:30} {step_1:8.2f} {size[name] / step_1:9.2f} {size[name]:6.2f}")
    assert (abs(step_1 - 1) < 1e-9) == (name in own), "step (1) is exact where a position serves one prediction"
T_mean = there.sum().item() / N
print(
    f"S over positions too: {size['unembed'] / T_mean:.2f} for unembed; A over examples: {size['unembed'] * T_mean:.2f}"
)
assert all(0.5 < ratio < 2 for ratio in size.values()), "off by about T: both divided by positions, or by examples"

# %% [markdown]
# The sizes are right within some tens of per cent, and would be wrong five-fold with either of the two other
# ways of counting. The keys, and the last block's values, come out a fifth too small, and that is step (1): the gradients at different
# positions go together there, and the terms with $t\ne u$ that it threw away were a part of $G$. Where the product is too large, by a quarter in two layers, it is
# step (2).
#
# ## Λ with the exact sum over tokens
#
# EK-FAC repairs what a diagonal can repair. Keep the eigenvectors of these $A$ and $S$. But for the eigenvalues,
# rotate the *whole* gradient of a sequence, summed over its tokens, before it is squared
# ([`rotated_gradients`](../inflib/ekfac.py)):
#
# $$\Lambda=\mathbb E\Big[\Big(Q_S^\top\Big(\sum_t g_ta_t^\top\Big)Q_A\Big)^2\Big]
# \qquad\text{and not}\qquad
# \Lambda'=\mathbb E\Big[\sum_t\big(Q_S^\top g_ta_t^\top Q_A\big)^2\Big].$$
#
# $\Lambda$ is the diagonal of $U^\top G_l U$, cross-token terms and all. So the theorem of notebook 05 holds: no
# other eigenvalues in this basis come closer. $\Lambda'$, squared token by token, would be cheaper.

# %%
Q_A, Q_S = ({k: torch.linalg.eigh(M[k])[1] for k in layers} for M in (A, S))


def exact_sum(name):
    return sum((Q_S[name].T @ one[name].matrices() @ Q_A[name]).square().sum(0) for one in passes) / N  # (o, i)


def token_by_token(name):
    squares = [((one[name].g @ Q_S[name]).square(), (one[name].a @ Q_A[name]).square()) for one in passes]
    return sum(torch.einsum("nto,nti->oi", g2, a2) for g2, a2 in squares) / N


Λ = {name: exact_sum(name) for name in layers}
for name in layers:
    U = torch.kron(Q_S[name], Q_A[name])
    diagonal = (U.T @ G[spans[name], spans[name]] @ U).diagonal()
    assert torch.allclose(Λ[name].flatten(), diagonal, atol=1e-10), f"{name}: sum over tokens first, square after"

# %% [markdown]
# $\Lambda=\mathrm{diag}(U^\top G_l U)$ in all 13 layers. And $\Lambda'$? The picture of reaches tells where it must
# be right: where a position serves only its own prediction, its $g_t$ holds one token's label, and different labels
# are independent. Compare the bars with `own` above.

# %%
gap = {k: ((token_by_token(k) - Λ[k]).norm() / Λ[k].norm()).item() for k in layers}
figure, ax = plt.subplots(figsize=(6.4, 3.4))
plots.bars(ax, gap, what="‖Λ′ − Λ‖ / ‖Λ‖ (no unit)")
assert all((gap[k] < 1e-12) == (k in own) for k in layers), "exact where a position serves one prediction only"
print({name: f"{value:.2f}" for name, value in gap.items() if value > 1e-12})

# %% [markdown]
# Zero to rounding in five layers. In the keys and values it is off by a third to more than a half, in
# the rest of the first block by a little.
#
# A trap for testers: on a model without attention the short cut passes every test. And it leans on labels from the
# *model*. The data's labels are not independent of each other, and with them it is exact in no layer at all:

# %%
data_gap = {}
for name in layers:
    a, g = pairs[name].a @ Q_A[name], pairs[name].g @ Q_S[name]  # rotated, for the data's own labels
    whole = torch.einsum("nto,nti->noi", g, a).square().sum(0)
    data_gap[name] = ((torch.einsum("nto,nti->oi", g.square(), a.square()) - whole).norm() / whole.norm()).item()
print(f"with the data's labels: off by {min(data_gap.values()):.0%} to {max(data_gap.values()):.0%}")
assert min(data_gap.values()) > 1e-3, "exactness was for labels from the model"

# %% [markdown]
# ## EK-FAC for sequences
#
# These steps are [`ekfac`](../inflib/kronecker.py), for sequences as for digits. Its matrix is ours. Its scores are those of its own dense
# matrix, solved the slow way.

# %%
from inflib import ekfac

ek = ekfac(model, objective, data, layers, labels="expected", progress=False)
E = ek.to_dense()  # (D, D)
for name, span in spans.items():
    U = torch.kron(Q_S[name], Q_A[name])
    ours = U @ torch.diag(Λ[name].flatten()) @ U.T
    assert torch.allclose(E[span, span], ours, atol=1e-10), f"{name}: padding in A? squared before the sum over tokens?"
λ = torch.cat([torch.full((o * i,), damping[k]) for k, (o, i) in ek.shapes.items()])  # (D,)
asked = torch.cat([rows(capture(model, objective, *q, layers, "log_likelihood")) for q in queries])  # (5, D)
dense = -torch.linalg.solve(E + λ.diag(), asked.T).T @ rows(pairs).T / N  # (5, 60)
assert torch.allclose(contributions(ek), dense, rtol=1e-10), "score = ∇mᵀ (C + λ)⁻¹ (−∇ℓ): one minus sign"

# %% [markdown]
# How far are these from the contributions by exact $G$? The ladder of notebook 05, shortened, for five questions, all
# with the same damping. Three tables, one for each thing one may want of an approximation. In each a column is a question.
#
# - *Correlation* with the exact contributions over the sixty sentences. The few largest decide it.
# - *Ranking*: the correlation of ranks (Spearman's) over the different sentences, so that copies count once. And of the three strongest proponents by exact $G$, how many are among
#   the three strongest?
# - *Size*: how many times the exact contributions the approximate ones are, by least squares.

# %%
from inflib import identity, kfac
from inflib.validation import rank_correlation


def correlations(came, exactly):
    """Pearson's correlation of two tables of contributions, for each question (5,)."""
    x, y = (s - s.mean(1, keepdim=True) for s in (came, exactly))
    return F.cosine_similarity(x, y, dim=1)


def rank_correlations(came, exactly, sentences):
    """Spearman's over the different sentences, for each question (5,)."""
    once = [sentences.index(text) for text in dict.fromkeys(sentences)]
    return torch.tensor([rank_correlation(a[once], b[once]) for a, b in zip(came, exactly, strict=True)])


# %%
def strongest(came, exactly, sentences):
    """Of exact G's three strongest proponents (copies once), how many are among the three strongest, (5,)."""
    once = [sentences.index(text) for text in dict.fromkeys(sentences)]
    top, best = (s[:, once].argsort(dim=1, descending=True, stable=True)[:, :3] for s in (came, exactly))
    return (top[:, :, None] == best[:, None, :]).sum((1, 2)).double()


def sizes(came, exactly):
    """How many times the exact contributions the approximate ones are, by least squares, (5,)."""
    return (came * exactly).sum(1) / exactly.square().sum(1)


# %%
options = dict(layers=layers, progress=False)
ladder = {
    "block G": gauss_newton(model, objective, data, blocks=True, **options),
    "EK-FAC": ek,
    "EK-FAC, 1 draw": ekfac(model, objective, data, **options),
    "K-FAC": kfac(model, objective, data, labels="expected", **options),
    "identity": identity(model, objective, data, **options),
}
found = {name: contributions(curvature) for name, curvature in ladder.items()}

# %%
measures = {
    "correlation": lambda came: correlations(came, truth),
    "rank correlation": lambda came: rank_correlations(came, truth, texts),
    "of the three strongest": lambda came: strongest(came, truth, texts),
    "size": lambda came: sizes(came, truth),
}
assert not any(text.startswith(". the dog sees cat") for text in texts), "the fourth question asks for what never came"
# %%
quality = {what: {name: measure(came) for name, came in found.items()} for what, measure in measures.items()}
for what, table in quality.items():
    print(f"{what:19}", "".join(f"{number:7}" for number in range(1, 6)), "  (questions)")
    for name, row in table.items():
        print(f"    {name:15}", "".join(f"{value:7.2f}" for value in row.tolist()), f"   mean {row.mean():5.2f}")
means = {name: row.mean() for name, row in quality["correlation"].items()}
assert means["block G"] > means["EK-FAC"] > means["identity"], "each rung should lose something on average"
assert quality["rank correlation"]["EK-FAC"].min() < 0.5, "EK-FAC's ranking should be poor for some question"

# %% [markdown]
# Much as for digits: block G is ahead of EK-FAC, and EK-FAC about level with K-FAC. The single draw of labels made here does nearly as well as the exact
# expectation. But look at single questions.
#
# *Correlation.* The fourth question is the hard one: no sentence begins *the dog sees cat*, as an assertion above makes sure, so there is no count behind it. There EK-FAC has 0.22,
# and no curvature at all has 0.36.
#
# *Ranking.* The order of the whole list is kept only in part, and for the fifth question less well than by the identity. Nor is the top of the list safe: for the second question none of
# the three strongest is right.
#
# *Size.* Off by a factor of six to nineteen, and by another factor for each question.
#
# ## Six trainings
#
# One model and five questions show that this can happen, not how often. So draw six corpora of sixty sentences, and train a model on each from a seed of
# its own. Take the mean over the five questions. With six independent trials the true median lies between the smallest and the largest with a probability
# of 97% (exercise 4 of notebook 05).


# %%
def trial(seed):
    """{method: (rank correlation, of the three strongest, all sizes)}, of five questions to a model of its own corpus."""
    own = sixty(seed)
    batch = token_batches([vocabulary.encode(text) for text in own], N)
    network = transformer(symbols, context=6, width=6, heads=2, hidden=8, blocks=2, seed=seed, dtype=torch.float64)
    train(network, objective, *batch[0], **recipe, seed=seed, progress=False)
    best = gauss_newton(network, objective, batch, layers, progress=False)
    some = {"exact": best, "EK-FAC": ekfac(network, objective, batch, layers, labels="expected", progress=False)}
    some["identity"] = identity(network, objective, batch, layers, progress=False)
    same = damping_of(best, 0.1)
    came = {k: influence(network, objective, batch, queries, C, same, progress=False) for k, C in some.items()}
    exactly = came.pop("exact")
    return {
        name: (rank_correlations(s, exactly, own).mean(), strongest(s, exactly, own).mean(), sizes(s, exactly))
        for name, s in came.items()
    }


trials = [trial(seed) for seed in range(6)]

# %%
for name in ("EK-FAC", "identity"):
    ranks, three, times = (torch.stack([one[name][k] for one in trials]) for k in range(3))
    for what, each in (("rank correlation", ranks), ("of the three strongest", three)):
        print(f"{name:8} {what:22} {each.quantile(0.5):5.2f} [{each.min():.2f}, {each.max():.2f}]")
    print(f"{name:8} sizes from {times.min():.1f} to {times.max():.1f}")
for k, what in enumerate(("rank correlation", "of the three strongest")):
    better = torch.stack([one["EK-FAC"][k] - one["identity"][k] for one in trials])
    print(f"EK-FAC minus identity, {what:22}", *(f"{value:+.2f}" for value in better.tolist()))
    assert better.median() > 0, "on most corpora EK-FAC should rank better than no curvature"
assert abs(trials[0]["EK-FAC"][0] - quality["rank correlation"]["EK-FAC"].mean()) < 1e-6, "the first trial is our model"

# %% [markdown]
# So on models of this kind (thirteen layers, 612 weights together, 60 sentences) EK-FAC ranks better than no curvature in five trainings of six. It does not rank
# much better, and of the three strongest proponents it misses one or two. Its sizes are not to be trusted, neither the large ones nor those below 1.
#
# ## Why the sizes are off, and how to get them back
#
# Two questions to the layers of our first model tell why. Take the top proponent: what part of its exact
# contribution does each layer's *own* contribution make, in block $G$? And how much curvature is there along the query's gradient
# $v$ in each layer, $v^\top\hat G_l v$ by EK-FAC against $v^\top G_l v$?

# %%
pro, con = (texts.index(f". the cat eats {food} .") for food in ("meat", "fish"))
claims = contributions(ladder["block G"], keep=("layer",))[0, pro] / truth[0, pro]  # (13,)
along_v = torch.stack(
    [asked[0, s] @ E[s, s] @ asked[0, s] / (asked[0, s] @ G[s, s] @ asked[0, s]) for s in spans.values()]
)
print(
    f"block G: single layers claim {claims.min():.1f} to {claims.max():.1f} of the whole, {claims.sum():.1f} together"
)
print(f"EK-FAC's curvature along v: {along_v.min():.1f} to {along_v.max():.1f} times the true one, by layer")
assert claims.min() > 0 and (along_v < 1.05).all(), "every layer pulls the same way, with too little to hold it back"

# %% [markdown]
# In exact $G$ the thirteen layers know of each other, and share out one change of the output among them. Cut apart,
# each is solved as though it were alone, and the sum counts the change eight times.
#
# EK-FAC adds to that. It keeps a block's trace, but along this query's gradient it has less curvature than $G$ in most layers, and we divide by it.
# (That is one question to one model, whose sizes are too large. For those below 1 in other trainings it is no explanation.)
#
# The conjugate gradients of notebook 05 know all layers at once. How many steps does it take to get the sizes back, and the ranking?
# (For a model whose $G$ cannot be written down, `refine` takes the same steps.)

# %%
from inflib.curvature import flatten, unflatten
from inflib.solvers import conjugate_gradients

climbs = {0: found["EK-FAC"]}
for steps in (1, 2, 5, 10, 20):
    walk = conjugate_gradients(exact, unflatten(asked, exact.shapes), damping, preconditioner=ek, steps=steps)
    climbs[steps] = -flatten(walk.x, exact.shapes) @ rows(pairs).T / N
for steps, came in climbs.items():
    low, high = sizes(came, truth).aminmax()
    print(
        f"{steps:2} steps: sizes {low:4.1f} to {high:4.1f}, rank correlation {measures['rank correlation'](came).mean():.2f}"
    )
last = {steps: measures["rank correlation"](came).mean() for steps, came in climbs.items()}
assert (sizes(climbs[5], truth) - 1).abs().max() < 0.2, "five steps should give the sizes within a fifth"
assert last[20] > 0.9 > last[5], "the ranking should take longer than the sizes"

# %% [markdown]
# Sizes come back first: one step sets the scale, and five are right within a fifth. The ranking of all sentences takes twenty. What larger models do, a model of 612 weights cannot tell. But
# a few refined queries can, on any model, and until they have been tried EK-FAC's contributions are a shortlist.
#
# ## Two masks
#
# Padding and prompts are both "not there", in two different senses.
#
# | | is the position read? | does it count in $A$? | is its prediction in the loss? |
# |---|---|---|---|
# | a token like any other | yes | yes | yes |
# | a prompt's token: target −100 | **yes** | **yes** | no |
# | padding: mask 0, target −100 | no | no | no |
#
# A target of −100 speaks about the *loss*; `attention_mask` says which positions *exist*. If both are right, it cannot
# matter how sequences are cut into batches, nor on which side they are padded. Refit everything for several cuts:

# %%
cuts = [(60, "right"), (60, "left"), (25, "right"), (13, "left")]
for labels in ("expected", "sampled"):
    by_cut = []
    for per_batch, side in cuts:
        batches = token_batches(sequences, per_batch, side=side)
        fit = ekfac(model, objective, batches, layers, labels=labels, progress=False)
        by_cut.append(influence(model, objective, batches, queries, fit, damping, progress=False))
    worst = max(((scores - by_cut[0]).norm() / by_cut[0].norm()).item() for scores in by_cut)
    assert worst < 1e-10, f"{labels} labels: something of the padding counts, or draws depend on the batch"
    print(f"{labels} labels: {len(cuts)} ways to cut and pad, the same scores to ten digits")

# %% [markdown]
# (Drawn labels too: the generator counts sequences and their tokens, not batches and columns.)
#
# And three ways to get it wrong, none of which raises an error:
#
# - *No mask* (all ones): the padding's activations enter $A$, and its count.
# - *No −100 at the padding*: the model is asked to predict the filling.
# - *The mask for the prompt*, hidden where it should only be left out of the loss: the model completes a text that it has not read.

# %%
no_mask = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["attention_mask"])}
A_wrong = second_moments(model, objective, [(no_mask, targets)], layers, labels="observed", progress=False).A(layers[0])
A_off = ((A_wrong - A[layers[0]]).norm() / A[layers[0]].norm()).item()
# %%
asked_filling = targets.where(there, 0)
loss_off = (objective.loss(model(**inputs), asked_filling) / losses).mean().item()
hidden = query_inputs | {"attention_mask": (query_targets >= 0).long()}
m_wrong = objective.measure("log_likelihood", model(**hidden), query_targets).item()
print(f"no mask: A off by {A_off:.0%}; no −100: losses × {loss_off:.2f}", end="; ")
print(f"prompt hidden: m = {m_wrong:.2f}, not {m.item():.2f}")
assert A_off > 0.02 and loss_off > 1.05 and abs(m_wrong - m.item()) > 0.1, "each mistake should be visible here"

# %% [markdown]
# ## Expand or reduce?
#
# "As if tokens were independent" is one way to make a single $S\otimes A$ of a shared layer's $T$ uses. It is called
# **expand**: each position is an example of its own. The other is **reduce**: first put a sequence's positions
# together, $\bar a=\frac1T\sum_t a_t$ and $\bar g=\sum_t g_t$, then take the moments over sequences
# (Eschenhagen et al. 2023). For sequences of one length:
#
# $$S_{\rm expand}\otimes A_{\rm expand}=\mathbb E\Big[\sum_t g_tg_t^\top\Big]\otimes\mathbb E\Big[\frac1T\sum_t a_ta_t^\top\Big],\qquad
# S_{\rm reduce}\otimes A_{\rm reduce}=\mathbb E\big[\bar g\bar g^\top\big]\otimes\mathbb E\big[\bar a\bar a^\top\big].$$
#
# Each is exact somewhere. Take a linear layer, squared error, and two losses.
#
# *A loss at every position.* The seed $e_c$ at $t$ reaches position $t$ alone, so $D\theta = e_ca_t^\top$. The sum over $t$ and $c$ is
# $T\cdot I\otimes\mathbb E[\frac1T\sum_t a_ta_t^\top]$: expand.
#
# *A loss on the average over positions.* The seed arrives everywhere as $e_c/T$, so $D\theta=e_c\bar a^\top$. The sum is
# $I\otimes\mathbb E[\bar a\bar a^\top]$: reduce.

# %%
from inflib import SquaredError
from inflib.lab import mlp


class Average(nn.Module):
    def forward(self, s):
        return s.mean(1)  # (B, T, o) → (B, o)


# %%
x = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(0))  # 30 sequences of 5 positions
linear = mlp((3, 2), dtype=torch.float64)
cases = {  # case: (network, shape of its outputs, which is exact)
    "loss at every position": (linear, (30, 5, 2), "expand"),
    "loss on the average": (nn.Sequential(linear, Average()), (30, 2), "reduce"),
}

# %%
for case, (network, shape, should) in cases.items():
    batch = [(x, torch.zeros(shape))]
    whole = gauss_newton(network, SquaredError(), batch, progress=False).to_dense()
    errors = {}
    for sharing in ("expand", "reduce"):
        C = kfac(network, SquaredError(), batch, sharing=sharing, progress=False).to_dense()
        errors[sharing] = ((C - whole).norm() / whole.norm()).item()
    print(f"{case:24}", {sharing: f"{error:.3f}" for sharing, error in errors.items()})
    assert min(errors, key=errors.get) == should and errors[should] < 1e-12, "swapped? reduce: mean of a, but SUM of g"

# %% [markdown]
# Which is a language model? It has a loss at every position, so expand should suit it, though attention breaks the
# argument. A picture classifier that averages over the image before its last layer is closer to the second case
# (`inflib`'s convolutions take `sharing="reduce"` too). Measure, for both, the matrix error of each layer's block:

# %%
import warnings

block_errors, by_sharing = {}, {}
for sharing in ("expand", "reduce"):
    with warnings.catch_warnings(record=True) as notes:
        C = kfac(model, objective, data, layers, labels="expected", sharing=sharing, progress=False)
    print(f"{sharing}: {len(notes)} warning that a layer's curvature is rounding noise")
    its_matrix = C.to_dense()
    block_errors[sharing] = {k: ((its_matrix - G)[s, s].norm() / G[s, s].norm()).item() for k, s in spans.items()}
    by_sharing[sharing] = correlations(contributions(C), truth).mean().item()
# %%
for name in layers:
    print(f"{name:22}", {sharing: f"{errors[name]:.2f}" for sharing, errors in block_errors.items()})
print("expand is closer in", sum(block_errors["expand"][k] < block_errors["reduce"][k] for k in layers), "of 13 layers")
print("mean correlation of contributions", {sharing: f"{mean:.2f}" for sharing, mean in by_sharing.items()})
assert by_sharing["expand"] > by_sharing["reduce"], "a loss at every token: expand should fit the language model better"

# %% [markdown]
# Expand is closer in ten of the thirteen layers, and by the correlation of contributions. At the keys reduce is off by 100%: it has put
# *zero* in place of the block, and `inflib` warned of it. Its $\bar g=\sum_t g_t$ is the gradient of the bias. And a key's bias adds the same
# number to all the scores that a softmax then compares, which changes nothing:

# %%
keys = [name for name in layers if name.endswith("k")]
bias_gradient = max(pairs[name].g.sum(1).abs().max().item() for name in keys)
single = min(pairs[name].g.abs().max().item() for name in keys)
print(f"keys: |g| at one position reaches {single:.2f} and more; summed over positions it is 0 to twelve digits")
assert bias_gradient < 1e-12 < single, "the key's bias should change no output"

# %% [markdown]
# A tempting bonus of reduce, one row a sequence and so cheaper sums, is thus paid for with a blind layer. `inflib`'s
# default is expand.
#
# ## Which layer, which position
#
# Block-diagonal curvature has one comfort: the score is a sum over layers [30]. And the training gradient is a sum
# over positions. So write $V_l=(\hat G_l+\lambda_l I)^{-1}\nabla_l m$ for the query's gradient, preconditioned in layer $l$:
#
# $${\rm score}_n=-\sum_{l}\sum_{t}\big\langle V_l,\; g_{lt}\,a_{lt}^\top\big\rangle. \qquad [30, 31]$$


# %%
def split_by_hand(solved):
    """Contributions by layer and position, (60, 13, 6), of one query's {layer: solved gradient (o, i)}."""
    parts = [torch.einsum("oi,nto,nti->nt", solved[k], pairs[k].g, pairs[k].a) for k in layers]
    return -torch.stack(parts, dim=1) / N


# %%
split = contributions(ek, keep=("layer", "token"))  # (5, 60, 13, 6)
question = capture(model, objective, *queries[0], layers, "log_likelihood")
solved = ek.solve({k: pair.matrices() for k, pair in question.items()}, damping)
V = {k: matrices[0] for k, matrices in solved.items()}  # of question 1, (o, i) in each layer
assert torch.allclose(split[0], split_by_hand(V), atol=1e-12), "g_t with the a of the SAME position"
assert torch.allclose(split.sum((2, 3)), contributions(ek), atol=1e-12), "layers and positions add up to the whole"
assert split.movedim(3, 2)[:, ~there].abs().max() == 0, "padding has no influence"

# %% [markdown]
# Take question 1, *the cat eats → meat*, and two training sentences, the one that says it and the one that says
# *fish*. Rows are layers, columns positions; the darkest cells are the largest shares. (The totals are EK-FAC's, nineteen times those of exact $G$:
# read colours, not sizes.) Where would you expect the dark cells, and where are they?

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2))
for ax, n in zip(axes, (pro, con), strict=True):
    plots.matrix(
        ax, split[0, n, :, :5], f"{texts[n]}   total {split[0, n].sum():+.1f} nats, order only", colourbar=True
    )
    ax.set(xticks=range(5), xticklabels=texts[n].split()[:5], aspect="auto", xlabel="position (word read)")
    ax.set_yticks(range(13), layers if n == pro else [""] * 13)
by_position = split[0, pro].sum(0)  # (6,)
print({word: f"{share:+.2f}" for word, share in zip(texts[pro].split()[:5], by_position.tolist(), strict=False)})
assert by_position.argmax() == 3, "the word is predicted at 'eats', so the largest share should stand there"

# %% [markdown]
# Mostly at *eats*, where the word in question is predicted, and there in nearly every layer. The second picture is the
# first one's negative: *fish* competes for the same place. But there is weight at *cat* and *the* as well, in the keys
# and values, above all of the first block. To answer *fish* or *meat*, something at *cat* had to be looked up.
#
# ### Does exact G split alike?
#
# The shares add up exactly, but to EK-FAC's contribution. Exact $G$ can be split the same way: its solved gradient is one vector for all
# layers, of which each layer has a piece. Compare the two splits for the top proponent of each question, by position and by layer.

# %%
of_exact = torch.linalg.solve(G + λ.diag(), asked.T).T  # (5, 612)
splits = {"EK-FAC": split}
pieces = [{k: of_exact[q, spans[k]].reshape(exact.shapes[k]) for k in layers} for q in range(len(queries))]
splits["exact G"] = torch.stack([split_by_hand(piece) for piece in pieces])
assert torch.allclose(splits["exact G"].sum((2, 3)), truth, atol=1e-10), "the pieces should add up to the whole"

# %%
tops = truth.argmax(1)  # each question's top proponent by exact G
shares = {name: torch.stack([s[q, n] for q, n in enumerate(tops)]) for name, s in splits.items()}  # (5, 13, 6)
for what, axis in (("position", 1), ("layer", 2)):
    both = [shares[name].sum(axis) for name in ("EK-FAC", "exact G")]
    agree = correlations(*both)
    print(f"by {what:8}", "".join(f"{value:7.2f}" for value in agree.tolist()), f"   mean {agree.mean():.2f}")
    assert (agree.min() > 0.7) == (what == "position"), "positions should agree better than layers"
first = {name: s[0].sum(1)[0] / s[0].sum() for name, s in shares.items()}
print("question 1, share of the first block's queries:", {name: f"{share:.2f}" for name, share in first.items()})

# %% [markdown]
# By position EK-FAC and exact $G$ agree about these five sentences, though a correlation of six numbers mostly hears the largest. By layer they do not. Of the first proponent exact $G$ gives nearly half to the
# queries of the first block, EK-FAC a sixth. Of the fourth they disagree altogether. So with layers cut apart, do not read much into
# *which layer* it was.
#
# Back to the words. Does the weight at *cat* make *cat* an influential word?
#
# ## Three questions about a token
#
# The split by position answers: *which position's weight update* did it? It is no statement about a word. The $g_t$ at
# *cat* holds the losses of all later words, and its $a_t$ has gathered all earlier ones. Whoever wants to know about a
# word has to say which of its two roles is meant (appendix B.1 of the paper).
#
# **As an output**, something to be predicted. Give the loss of this token alone the weight $1+\varepsilon$. What
# changes at the rate $-\langle V,\nabla\ell_t\rangle$ is the measurement, and these rates add up to the score. The slow way is one
# backward pass a token:


# %%
def along(measurement):
    """−⟨V, ∇ measurement⟩ / N of every training sentence, (60,)."""
    captured = capture(model, objective, inputs, targets, layers, measurement)
    return -sum(torch.einsum("oi,noi->n", V[k], pair.matrices()) for k, pair in captured.items()) / N


as_output = torch.stack([along(lambda f, y, t=t: objective.token_losses(f, y)[:, t]) for t in range(6)], 1)  # (60, 6)
assert torch.allclose(as_output.sum(1), contributions(ek)[0], atol=1e-10), "Σ_t ∇ℓ_t = ∇ℓ: does each target count once?"

# %% [markdown]
# The paper's trick: $\langle V,\nabla\ell_t\rangle$ is the derivative of $\ell_t$ *in the direction* $V$. It shows
# when the weights take a small step $\eta$ along $V$, and a forward pass yields all $\ell_t$ at once:
#
# $$\langle V,\nabla\ell_t\rangle\approx\tfrac1\eta\big(\ell_t(\theta+\eta V)-\ell_t(\theta)\big). \qquad [36]$$


# %%
def losses_after(step):
    """ℓ_t at the weights θ + step · V, (60, 6)."""
    moved = {f"{k}.weight": weights[f"{k}.weight"] + step * V[k][:, :-1] for k in layers}
    moved |= {f"{k}.bias": weights[f"{k}.bias"] + step * V[k][:, -1] for k in layers}
    return objective.token_losses(functional_call(model, moved, kwargs=inputs), targets)


for η in (1e-3, 1e-5, 1e-7):
    by_steps = -(losses_after(η) - losses_after(0)).detach() / (η * N)
    error = ((by_steps - as_output).norm() / as_output.norm()).item()
    print(f"step {η:.0e}: relative error {error:.1e}")
assert error < 1e-4, "the error should shrink with the step; is the bias V's last column?"

# %% [markdown]
# Two forward passes in place of six backward ones, with an error that shrinks in proportion to the step.
#
# **As an input**, something to be read. A word cannot be half left out. So the paper scales its embedding by
# $1+\varepsilon$ and asks how the *sequence's* score responds, at the rate $-\langle V,\nabla_\theta
# \frac{d\ell}{d\varepsilon}\rangle$ [37, 38]. The slow way is a small change of one embedding at a time:


# %%
def with_scaled(t, ε):
    """The contributions (60,) when the embedding read at position t is 1 + ε times itself."""
    scales = 1 + ε * F.one_hot(torch.tensor(t), 6)[:, None]  # (6, 1)
    handle = model.token.register_forward_hook(lambda module, arguments, e: e * scales)
    try:
        return along(objective.loss)
    finally:
        handle.remove()


little = 1e-5
as_input = torch.stack([(with_scaled(t, little) - with_scaled(t, -little)) / (2 * little) for t in range(6)], 1)
assert as_input[~there].abs().max() < 1e-6, "nobody reads padding"

# %% [markdown]
# `inflib` has both, exactly and for all tokens together: [`output_tokens`](../inflib/tokens.py) and
# [`input_tokens`](../inflib/tokens.py) differentiate along $V$ in forward mode, where the paper takes a finite step.

# %%
from inflib.tokens import input_tokens, output_tokens

outputs_of, inputs_of = (
    contribution(function(model, objective, data, queries, ek, damping, progress=False), N)  # (5, 60, 6)
    for function in (output_tokens, input_tokens)
)
assert torch.allclose(outputs_of[0], as_output, atol=1e-10), "one token's loss at a time, in its own context"
assert torch.allclose(inputs_of[0], as_input, rtol=1e-4, atol=2e-5), "the token's embedding alone, not its position's"

# %% [markdown]
# All three for the sentence that says *meat*. Mind the labels: position and input are named by the word that is read,
# output by the word that is predicted, one further on.

# %%
words_of = texts[pro].split()
three = {
    "position's update [31]": (split[0, pro].sum(0)[:5], words_of[:5]),
    "word as output [36]": (outputs_of[0, pro, :5], words_of[1:]),
    "word as input [38]": (inputs_of[0, pro, :5], words_of[:5]),
}

# %%
figure, axes = plt.subplots(3, 1, figsize=(6.4, 3.4))
for ax, (title, (values, names)) in zip(axes, three.items(), strict=True):
    plots.matrix(ax, values[None])
    ax.set(xticks=range(5), xticklabels=names, aspect="auto")
    ax.set_ylabel(title, rotation=0, ha="right", va="center")
    for t, value in enumerate(values.tolist()):
        dark = abs(value) > 0.6 * values.abs().max()
        ax.text(t, 0, f"{value:+.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    print(f"{title:23}", {name: f"{value:+.2f}" for name, value in zip(names, values.tolist(), strict=True)})
assert words_of[1 + outputs_of[0, pro].argmax()] == "meat", "what was asked for is what this sentence taught"
assert abs(three["word as output [36]"][0].sum() - by_position.sum()) < 1e-8, "two ways to split one score"

# %% [markdown]
# Three different answers.
#
# - As an *output* all influence is one word's, *meat*, as it should be. The query asked how
#   likely that word is, and to have been trained on predicting it is what helps.
# - The *positions* show the same total by where the weights were touched: a fifth of it before *eats*, at words whose own prediction
#   had no part in it.
# - As an *input*, *eats* is negative: a stronger *eats* would make this sentence a weaker proponent. A stronger *cat*
#   would make it a better one. These last numbers are slopes; they do not add up to anything.
#
# ## Summary
#
# A sequence is one example whose loss is summed over its tokens, since only the sum is a negative log-likelihood. A
# query is that loss with the prompt's targets left out. The gradient in a layer is $\sum_tg_ta_t^\top$. Keys, values and all earlier
# layers serve several predictions at once. So $\Lambda$ is taken from the exact sum, while $A$ and $S$ are taken as if tokens were
# independent (expand). Labels are drawn one per token.
#
# A contribution splits exactly by layer and position. But with layers cut apart its size is off, and so is its split by layer. Its
# ranking is a shortlist, of whose first three about two are right. Whoever asks about a *word* must say whether as output or as input.
#
# Next, in notebooks 07 and 08: all of it at work, on digits and on text.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. A query by hand (easy, 5 minutes)
#
# Without `completion`: write `query(prompt, answer)` for two lists of token ids. It returns the input ids and the
# targets, both `(1, T)`, such that `objective.measure("log_likelihood", ...)` is $\log p(\text{answer}\mid\text{prompt})$.


# %% jupyter={"source_hidden": true}
@exercise
def check_query(answer):
    prompt, reply = vocabulary.encode(". the cat"), vocabulary.encode("eats fish .")
    ids, labels = answer(prompt, reply)
    assert ids.shape == labels.shape, f"came {tuple(ids.shape)} and {tuple(labels.shape)}: a target for every position"
    assert ids.shape[1] == len(prompt) + len(reply) - 1, "the last token is predicted and never read"
    assert not (labels == ids)[labels >= 0].any(), "the target at t is the token at t + 1, not the one being read"
    assert (labels >= 0).sum() == len(reply), (
        f"{(labels >= 0).sum()} targets, expected 3: from the prompt's LAST word on"
    )
    came = objective.measure("log_likelihood", model(ids), labels)
    assert torch.allclose(came, log_likelihoods(prompt + reply)[-3:].sum()), "−100 up to the prompt's last position"
    return f"right: log p = {came.item():.3f}"


# %%
def query(prompt, answer):
    """Two lists of token ids to (input ids, targets), both (1, T)."""
    return ...  # your answer


check_query(query)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The prompt's *last* position predicts the answer's first token, so only `len(prompt) - 1` targets are left out.
#
# ```python
# def query(prompt, answer):
#     ids = torch.tensor([prompt + answer[:-1]])
#     targets = torch.tensor([[-100] * (len(prompt) - 1) + answer])
#     return ids, targets
#
#
# check_query(query)
# ```
# </details>


# %% [markdown]
# ### 2. A completion in two parts (easy, 10 minutes)
#
# $\log p(\textit{eats fish}\mid\textit{the cat})$ is the sum of two conditional log-probabilities. Write `in_two_parts()`,
# which returns two queries made with `ask`, whose contributions add up to those of `ask(". the cat", "eats fish")`.


# %% jupyter={"source_hidden": true}
@exercise
def check_in_two_parts(answer):
    whole, parts = contributions(ek, [ask(". the cat", "eats fish")]), contributions(ek, list(answer()))
    assert len(parts) == 2, f"{len(parts)} queries came; expected two"
    apart = contributions(ek, [ask(". the cat", "eats"), ask(". the cat", "fish")])
    assert not torch.allclose(parts.sum(0), apart.sum(0)), "the second part is asked GIVEN the first: extend its prompt"
    assert torch.allclose(parts.sum(0), whole[0], atol=1e-10), (
        "log p(xy | z) = log p(x | z) + log p(y | zx): keep z in the second prompt"
    )
    return "right: contributions are linear in the measurement, so a completion splits like its log-likelihood"


# %%
def in_two_parts():
    """Two queries made with ask."""
    return ...  # your answer


check_in_two_parts(in_two_parts)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The first part moves into the prompt of the second. This splits a query by *its* tokens, as [31] splits the training
# side.
#
# ```python
# def in_two_parts():
#     return ask(". the cat", "eats"), ask(". the cat eats", "fish")
#
#
# check_in_two_parts(in_two_parts)
# ```
# </details>


# %% [markdown]
# ### 3. Rescue the trap (medium, 15 minutes)
#
# All tokens in one backward pass *can* be right on average. Write `signs(generator)`: numbers of shape `(6, 8, 60)`, for
# tokens, classes and sentences, such that the second moment of $\sum_{tc}w_{tc}J_t^\top s_{tc}$ is $G$ on average. `seeded`
# holds the $J_t^\top s_{tc}$. What must $\mathbb E[w_{tc}w_{t^\prime c^\prime}]$ be?


# %% jupyter={"source_hidden": true}
@exercise
def check_signs(answer):
    generator, total = torch.Generator().manual_seed(3), torch.zeros_like(G)
    first, second = answer(generator), answer(generator)
    assert first.shape == (6, symbols, N), f"shape {tuple(first.shape)}, expected (6, 8, 60)"
    assert not torch.equal(first, second), "the same every time: nothing cancels; draw them"
    assert (first[0] != first[1]).any(), "one sign for all tokens: the cross-token terms stay"
    assert (first[:, 0] != first[:, 1]).any(), "one sign for all classes: the cross-class terms stay"
    for _ in range(100):
        one_pass = torch.einsum("tcn,tcnx->nx", answer(generator), seeded)
        total += one_pass.T @ one_pass / (100 * N)
    error, size = ((total - G).norm() / G.norm()).item(), (total.trace() / G.trace()).item()
    assert 0.9 < size < 1.1, f"the trace is {size:.2f} times G's: E[w²] must be 1, as √p is in the seeds already"
    assert error < 0.25, f"error {error:.2f} after 100 draws: E[w_tc w_uk] must be 0 unless t = u and c = k"
    return "right: one pass for all tokens and classes, unbiased"


# %%
def signs(generator):
    """Numbers of shape (6, 8, 60): tokens, classes, sentences."""
    return ...  # your answer


check_signs(signs)

# %% [markdown]
# <details><summary>Solution</summary>
#
# It must be 1 for the same token and class and 0 otherwise: independent signs. Like a draw of labels it is unbiased and
# noisy, and it costs as much.
#
# ```python
# def signs(generator):
#     return 2.0 * torch.randint(2, (6, 8, 60), generator=generator) - 1
#
#
# check_signs(signs)
# ```
# </details>


# %% [markdown]
# ### 4. Input tokens by two backward passes (harder, 20 minutes)
#
# The paper gets [38] for all tokens at once: $\frac{d\ell}{d\varepsilon_t}=x_t\cdot\frac{\partial\ell}{\partial x_t}$, $x_t$ the embedding, by
# one backward pass, at $\theta$ and again at $\theta+\eta V$. Write `slopes(step)`, which returns $\frac{d\ell}{d\varepsilon_t}$
# of all sentences and positions, `(60, 6)`, at $\theta+\text{step}\cdot V$. `losses_after(step)` gives the losses there,
# and a hook like that of `with_scaled` scales the embeddings.


# %% jupyter={"source_hidden": true}
@exercise
def check_slopes(answer):
    came = answer(0.0)
    assert came.shape == (60, 6), f"shape {tuple(came.shape)}: one scale for each sentence and position"
    assert not came.requires_grad, "return the slopes themselves, detached"
    assert not model.token._forward_hooks, "a hook is left on the model: remove it in a finally"
    assert came[~there].abs().max() == 0, "nobody reads padding"
    by_steps = -(answer(1e-7) - came) / (1e-7 * N)
    error = ((by_steps - inputs_of[0]).norm() / inputs_of[0].norm()).item()
    assert error < 1e-2, (
        f"relative error {error:.2f}; 1: the step was not used, 2: a sign, other: not x · ∂ℓ/∂x summed up"
    )
    return "right: two backward passes for all tokens of all sentences"


# %%
def slopes(step):
    """dℓ/dε_t at θ + step · V, (60, 6)."""
    return ...  # your answer


check_slopes(slopes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Give every embedding a scale of its own and let autograd differentiate in the scales: it sums $x\cdot\partial\ell/\partial x$
# over an embedding's numbers by itself.
#
# ```python
# def slopes(step):
#     ε = torch.zeros(60, 6, 1, requires_grad=True)
#     handle = model.token.register_forward_hook(lambda module, arguments, e: e * (1 + ε))
#     try:
#         loss = losses_after(step).sum()
#     finally:
#         handle.remove()
#     return torch.autograd.grad(loss, ε)[0].squeeze(2)
#
#
# check_slopes(slopes)
# ```
# </details>


# %% [markdown]
# ### 5. A whole sentence less (easy, 5 minutes, pencil and paper)
#
# A contribution is a rate: what a *little* less of a sentence costs. The model is nearly a table, in which *meat* follows *the cat eats* 2 times
# of 9, and *fish* 7 times. Take one of the two *meat* sentences away for good. What does $\log p(\textit{meat})$ lose, in nats, if the table is
# counted anew?


# %% jupyter={"source_hidden": true}
@exercise
def check_lost(answer):
    assert abs(answer - (1 / meat - 1 / (meat + fish))) > 1e-3, "that is the rate again: count anew, 1 of 8"
    assert abs(answer + torch.tensor(16 / 9).log()) > 1e-2, "the size is right, but a loss is positive"
    assert abs(answer - torch.tensor(16 / 9).log()) < 1e-2, "it was log(2/9); with one meat of eight it is log(1/8)"
    rate = ranking(truth[0])[". the cat eats meat ."]
    return (
        f"right: {answer:.2f} nats, and the contribution was {rate:.2f}, for the second half of a sentence weighs more"
    )


# %%
lost = ...  # your number

check_lost(lost)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\log\frac29-\log\frac18=\log\frac{16}{9}=0.58$. The rate at the start, $\frac12-\frac19=0.39$, is a third smaller: the fewer *meat* sentences are left, the more the next
# one counts. First-order predictions err in this direction for what rests on one or two examples.
#
# ```python
# from math import log
#
# lost = log(2 / 9) - log(1 / 8)
# check_lost(lost)
# ```
# </details>

# %% [markdown]
# ## References
#
# * R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*,
#   [arXiv 2308.03296](https://arxiv.org/abs/2308.03296): the equations in brackets; appendix B.1 for tokens.
# * R. Eschenhagen, A. Immer, R. Turner, F. Schneider, P. Hennig 2023, *Kronecker-Factored Approximate Curvature for
#   Modern Neural Network Architectures*, [arXiv 2311.00636](https://arxiv.org/abs/2311.00636): expand and reduce.
# * J. Martens 2020, *New Insights and Perspectives on the Natural Gradient Method*,
#   [arXiv 1412.1193](https://arxiv.org/abs/1412.1193): when the Fisher is the Gauss-Newton Hessian.
# * T. George et al. 2018, *Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis*,
#   [arXiv 1806.03884](https://arxiv.org/abs/1806.03884): the eigenvalue correction.
