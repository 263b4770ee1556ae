# %% [markdown]
# # 11 · What does it cost on my model?
#
# **The question.** Everything so far ran on models that fit in a corner of memory. Yours does not. What will a fit, an index and a query cost on it, in operations,
# bytes and hours? And what can be given up, with how much loss, when the answer is *too much*?
#
# **What you need to know.** Symbols: [one table](notation.md). Notebook 05 ($\Lambda$, damping) and notebook 06: sequences, the loss summed over tokens, the query as a completion.
# The numbers in brackets are the equations of Grosse et al. 2023.
#
# **Time.** About 55 minutes to read; it runs in about a minute on two CPU cores.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch.utils.flop_counter import FlopCounterMode

from inflib import CrossEntropy, NextToken, Pair, TrainIndex, capture, completion, damping_of, ekfac, influence
from inflib.lab import corpus_of, exercise, language_model, load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import plots

# %%
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
plots.use_style()
folder = Path(tempfile.mkdtemp())  # for what this notebook keeps on disk

# %% [markdown]
# Two models we know: the transformer of notebook 08 that read two plays of Shakespeare, and the digits' network of notebook 00. We fit EK-FAC to the transformer's MLP layers
# on every thirtieth sequence. The queries are ten completions of fifteen characters, from sequences that were left out of the fit.

# %%
plays = corpus_of("shakespeare")
reader, reading_objective = language_model("shakespeare", plays, dtype=torch.float64), NextToken()
passages, asked = plays[slice(3, None, 30)], plays[slice(9, 1200, 120)]
reading = passages.batches(32)
queries = [completion(asked.vocabulary.encode(t[:100]), asked.vocabulary.encode(t[100:115])) for t in asked.texts]
curvature = ekfac(reader, reading_objective, reading, ["blocks.*.mlp.*"])
up = curvature.layers[0]
o, i = curvature.shapes[up]
print(f"{len(passages)} sequences, {len(queries)} queries; {up} has (o, i) = ({o}, {i})")
assert not set(passages.texts) & set(asked.texts), "a query must not stand among the sequences that are searched"

# %% [markdown]
# ## Rotate first, or build first?
#
# Counting comes before measuring: a count holds on every machine. Take the price of one sequence in one layer. Its gradient in the eigenbasis,
# $Q_S^\top(\sum_t g_ta_t^\top)Q_A$, can be had in two orders. *Rotate first* turns every $g_t$ and every $a_t$, then multiplies: $T(o^2+i^2+oi)$ multiplications.
# *Build first* sums up the matrix, then turns it from both sides: $T\cdot oi+oi\,(o+i)$. PyTorch can count operations, two for each multiplication and its addition:


# %%
def rotation(positions, o, i):
    """Multiplications a sequence: {order: number}."""
    return {"rotate first": positions * (o * o + i * i + o * i), "build first": positions * o * i + o * i * (o + i)}


# %%
inputs, targets = passages[slice(0, 8)].tensors()
pair = capture(reader, reading_objective, inputs, targets, [up])[up]
T = pair.a.shape[1]
Q_S, Q_A = curvature.Q_S[up], curvature.Q_A[up]

# %%
orders = {
    "rotate first": lambda a, g: (g @ Q_S).mT @ (a @ Q_A),
    "build first": lambda a, g: Q_S.T @ (g.mT @ a) @ Q_A,
}
for order, rotated in orders.items():
    with FlopCounterMode(display=False) as counter:
        result = rotated(*pair)
    print(f"{order}: {counter.get_total_flops() / 8:.4g} operations a sequence of {T} characters")
    assert counter.get_total_flops() == 2 * 8 * rotation(T, o, i)[order], f"{order}: count again"
    assert torch.allclose(result, orders["rotate first"](*pair), atol=1e-10), "one and the same matrix"

# %% [markdown]
# The first grows with $T$ in all its terms; the second has a price paid once a sequence. So short sequences should rotate, and long ones build. Each side can choose for itself: turn
# $g$ early if that takes less, $To^2<o^2i$, so if $T<i$; turn $a$ early if $T<o$. That is what `inflib` does. Count its own operations at four lengths: two below both $i$ and $o$, one between them, one above both:

# %%
from inflib.ekfac import rotated_gradients

longest = Pair(*(torch.cat([side] * 5, dim=1) for side in pair))  # each text five times over, for its length alone
for positions in (16, T, 2 * T, 5 * T):
    cut = Pair(longest.a[:, :positions], longest.g[:, :positions])
    with FlopCounterMode(display=False) as counter:
        list(rotated_gradients(cut, Q_S, Q_A))
    each = positions * o * i + min(positions, i) * o * o + min(positions, o) * i * i
    print(f"T = {positions:3}: {counter.get_total_flops()} operations, counted by hand {2 * 8 * each}", end="")
    print(f", rotating first {2 * 8 * rotation(positions, o, i)['rotate first']}")
    assert counter.get_total_flops() == 2 * 8 * each, "each side turns before the sum or after it, whichever is less"

# %% [markdown]
# Does time follow the count? That depends on the machine, so nothing about seconds is printed here. The check below asks something else of the same formula: where the two orders
# meet, for the wide layer of GPT-2 in its smallest size.

# %%
wide_o, wide_i = 3072, 769
lengths = torch.logspace(0, 4, 80)
figure, ax = plt.subplots()
for order, colour in zip(orders, (plots.BLUE, plots.ORANGE), strict=True):
    ax.loglog(lengths, [rotation(x, wide_o, wide_i)[order] for x in lengths.tolist()], color=colour, label=order)
best = lengths * wide_o * wide_i + lengths.clamp(max=wide_i) * wide_o**2 + lengths.clamp(max=wide_o) * wide_i**2
ax.loglog(lengths, best, "k:", label="each side as is cheaper")
crossing = wide_o * wide_i * (wide_o + wide_i) / (wide_o**2 + wide_i**2)
ax.axvline(crossing, color=plots.GREY, linewidth=0.8, linestyle="--", label="equal")
ax.set(xlabel="tokens in a sequence, T", ylabel="multiplications a sequence")
ax.legend()
pure = [min(rotation(x, wide_o, wide_i).values()) for x in lengths.tolist()]
assert bool((best <= torch.tensor(pure) * (1 + 1e-9)).all()), "a free choice is never dearer than a pure order"

# %%
equal, short_text = rotation(crossing, wide_o, wide_i), rotation(20, wide_o, wide_i)
factor = short_text["build first"] / short_text["rotate first"]
print(f"equal at T = {crossing:.0f} tokens; at 20 tokens building first costs {factor:.0f} times as much")
assert abs(equal["rotate first"] / equal["build first"] - 1) < 1e-9, "T(o² + i²) = oi(o + i) where they cross"

# %% [markdown]
# For short texts the order is worth a factor of nearly forty; near GPT-2's context of 1,024 it hardly matters.
#
# ## Bytes, before anything is built
#
# Memory usually ends a run before time does. A gradient that is built has $oi$ numbers *for every sequence*; kept apart as $g$ and $a$ it has $T(o+i)$. For digits ($T=1$) the pair is
# the small form, and no gradient is ever built. Beyond $oi/(o+i)$ tokens the matrix is smaller, and neither is small:

# %%
table = {
    "digits, 784 → 64": (1, 64, 785),
    "this notebook, up": (T, o, i),
    "GPT-2 small, wide layer": (1024, 3072, 769),
    "52 billion, wide layer": (512, 32768, 8193),
}

# %%
print(f"{'one layer, 32 sequences':26}{'matrices':>14}{'pairs':>14}   in kB, single precision")
for name, (positions, rows, columns) in table.items():
    built, apart = (32 * 4 * count / 1e3 for count in (rows * columns, positions * (rows + columns)))
    print(f"{name:26}{built:14,.0f}{apart:14,.0f}")
    assert (built < apart) == (rows * columns / (rows + columns) < positions), "oi against T(o + i)"

# %% [markdown]
# So a library that keeps all gradients of a batch needs as many copies of the model as the batch has sequences. `inflib` builds a few at a time, within a budget (`max_bytes`), and lets them go.
#
# An exact index does keep them all, because a second question then costs one product instead of a pass over the data. `TrainIndex` says what it will take before it takes it:

# %%

needed = TrainIndex.bytes_needed(reader, reading, curvature, torch.float32)
index = TrainIndex.build(reader, reading_objective, reading, curvature, dtype=torch.float32)
numbers = sum(rows * columns for rows, columns in curvature.shapes.values())
weights_of_reader = sum(p.numel() for p in reader.parameters())
print(
    f"{needed / 1e6:.1f} MB announced, {index.nbytes / 1e6:.1f} held: {len(passages)} sequences × {numbers:,} numbers"
)
print(f"the model itself: {weights_of_reader:,} weights, {4 * weights_of_reader / 1e6:.1f} MB")
assert needed == index.nbytes == len(passages) * numbers * 4, "a matrix (o, i) for each sequence and layer"

# %% [markdown]
# ## All of it, before any of it
#
# Nobody wants to count layer by layer. `plan` does: it counts bytes from the shapes, and runs each stage on its first batches, which tells what one more batch takes. A few seconds of work stand for hours.
# It is called as `ekfac` is (model, objective, data, layers), with the queries behind. For a store on disk in place of an index, add `store={"axes": 0.25, "bits": 1}`. This is what
# `print(plan(...))` said on one machine, busy with other things, of the model and the queries above:
#
# ```text
# stage     passes   operations        time    peak memory           disk
# fit            2      7.9e+10      16.2 s         410 MB          11 MB
# index          1      3.5e+10      5.74 s         542 MB         141 MB
# scores         1      2.4e+10      5.73 s         422 MB        5.36 kB
# 67 examples; free: 16.8 GB
# ```
#
# Peak memory comes on top of what model and data hold already. Time and memory are that machine's. So the cell looks at what every machine agrees on:

# %%
from inflib import plan

planned = plan(reader, reading_objective, reading, ["blocks.*.mlp.*"], queries)
for stage in planned.stages:
    size = f"{stage.disk / 1e6:.2f} MB"
    print(f"{stage.name:7} passes: {stage.passes}   operations: {stage.operations / 1e9:4.0f} billion   result: {size}")
assert planned["index"].disk == TrainIndex.bytes_needed(reader, reading, curvature), "the index that would be built"

# %% [markdown]
# Is it true? Let the scores be made, and PyTorch count. We need them anyway: they are the exact ones that all short cuts below are compared with.

# %%
damping = damping_of(curvature, 0.1)
with FlopCounterMode(display=False) as counter:
    exact = influence(reader, reading_objective, reading, queries, curvature, damping)  # (Q, N)
ratio = counter.get_total_flops() / planned["scores"].operations
print(f"the scores took {ratio:.2f} of the operations that were planned")
assert abs(ratio - 1) < 0.1, "what a batch takes, the next one takes"

# %% [markdown]
# And where a stage would not fit, the plan says what to turn down. Suppose that 150 megabytes were free. In double precision, the model's own, the index takes 141 of them (in single, 71).
# That leaves too little for everything else:

# %%
from inflib import Plan

tight = Plan(planned.stages, planned.examples, free=150_000_000)
print(f"index would not fit: {tight['index'].most}")
assert tight["index"] in tight.too_large, "it takes 141 MB in double precision"

# %% [markdown]
# Every sequence weighs three fifths of what the model weighs, so two of them outweigh it. For a model of 135 million parameters one sequence takes hundreds of megabytes, as the table near the end counts. This is
# the wall that the rest of the notebook is about.
#
# ## Few bits
#
# What does a score need of a gradient? With damping $\lambda$ it is a sum over coordinates of the eigenbasis, in which every coordinate is divided by $\Lambda+\lambda$
# (equation 21 of the paper). Divide both sides by the root, and the mean square of a training gradient's coordinate becomes about $\Lambda/(\Lambda+\lambda)$. Where $\Lambda$ is far above $\lambda$, that is nearly 1, so these coordinates are *alike in size*.
# Where it is far below, they are next to nothing and may be left out. Many terms of one size add up to a score, so an error in each of them can average out. That is why a **single bit**, the sign, might do for each. How many coordinates are of which kind?

# %%
squares = torch.zeros(o, i)
for some in reading:
    for G in rotated_gradients(capture(reader, reading_objective, *some, [up])[up], Q_S, Q_A):
        squares += G.square().sum(0) / len(passages)
Λ_up, λ_up = curvature.eigenvalues[up], damping[up]
sizes_divided = (squares / (Λ_up + λ_up)).sqrt()  # (o, i), root mean squares
of_one = Λ_up / (Λ_up + λ_up)
for kind, which in {"above 1/2": of_one > 0.5, "below 1/10": of_one < 0.1}.items():
    low, middle, high = torch.quantile(sizes_divided[which], torch.tensor([0.05, 0.5, 0.95]))
    print(
        f"Λ/(Λ + λ) {kind}: {which.double().mean():.2f} of {up}'s axes; size {middle:.2f}, nine in ten from {low:.2f} to {high:.2f}"
    )
    assert (middle > 0.5) == (kind == "above 1/2"), "large axes have a size near 1, small ones far from it"

# %% [markdown]
# From a sign to a number it is one step. Each coordinate has a typical size, its *spread*, and each sequence one scale, fitted once by least squares. The score is near to
# scale · Σ sign · spread · query, a sum over the axes that are kept.
#
# Here are stores of three sizes. Each is a folder on disk. We look at two things. One is the correlation with the exact scores, query by query; the other, how many of the exact ten strongest
# stand among the store's first twenty. With 67 sequences the second is easy: twenty drawn by chance hold three of the ten.

# %%
strongest = exact.topk(10).indices  # (Q, 10)


# %%
def fidelity(scores):
    """(mean correlation with the exact scores, share of the exact ten in the first twenty)."""
    each = [torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(scores, exact, strict=True)]
    ahead = scores.topk(20).indices
    there = [torch.isin(ten, twenty).double().mean() for ten, twenty in zip(strongest, ahead, strict=True)]
    return float(torch.stack(each).mean()), float(torch.stack(there).mean())


# %%
stores, build = {}, (reader, reading_objective, reading, curvature)
for axes in (1.0, 0.25, 0.0625):
    stores[axes] = TrainIndex.build(*build, path=folder / str(axes), axes=axes, bits=1)
    assert stores[axes].nbytes < index.nbytes / 30, "one bit in place of thirty-two"

# %%
print(f"{'share of the axes':>18}{'bytes a sequence':>18}{'of float32':>12}{'correlation':>13}{'ten in twenty':>15}")
fidelities = {}
for axes, store in stores.items():
    fidelities[axes] = fidelity(store.influence(reader, reading_objective, queries, damping=damping).double())
    row = f"{axes:18}{store.nbytes // len(store):18,}{'1/' + str(round(index.nbytes / store.nbytes)):>12}"
    print(row + f"{fidelities[axes][0]:13.3f}{fidelities[axes][1]:15.2f}")
print(f"twenty sequences drawn by chance hold {20 / len(passages):.2f} of the ten")
assert fidelities[0.25][0] > 0.95, "a bit for each of the strongest axes should keep the order"

# %% [markdown]
# One bit on a quarter of the axes takes a hundredth of the bytes, and on these 67 sequences the order is nearly the same.
#
# Is a byte better spent on more axes or on more bits? Three stores of nearly the same size: twice the bits for half the axes, and once more.

# %%
same_size = {}
for axes, bits in ((0.25, 1), (0.125, 2), (0.0625, 4)):
    where = folder / f"{bits} bits"
    same_size[bits] = TrainIndex.build(*build, path=where, axes=axes, bits=bits)
    scores = same_size[bits].influence(reader, reading_objective, queries, damping=damping).double()
    correlation, there = fidelity(scores)
    row = f"{bits}-bit numbers on {axes:6} of the axes: {same_size[bits].nbytes // len(same_size[bits]):,} bytes a sequence"
    print(row + f", correlation {correlation:.3f}, ten in twenty {there:.2f}")
sizes_alike = [one.nbytes / same_size[1].nbytes for one in same_size.values()]
assert max(abs(size - 1) for size in sizes_alike) < 0.05, "axes times bits is the same in all three"

# %% [markdown]
# One bit and two are alike; four are worse. Start from one bit on a sixteenth of the axes, in the table before, at 0.942. With four times its bytes, three further bits bring 0.956, and further axes 0.988.
# At a sixteenth of the axes, then, a digit more of those is worth less than an axis more; from a quarter on, all axes bring next to nothing.
#
# One thing a bit does lose is *size*: scores come out too small by a common factor. A least-squares fit is a projection, and a projection is shorter than what it is made of. Where coordinates are Gaussian, signs
# keep $2/\pi$ of a square. Draw the store's scores against the exact ones, with the bound that the store keeps for each pair. The
# bound is no estimate: it follows from Cauchy and Schwarz, from the norm of what was left out of each sequence.

# %%
store = stores[0.25]
prepared = store.prepare(reader, reading_objective, queries)
near = store.scores(prepared, damping=damping).double()
bound = store.bounds(prepared, damping=damping).double()
slope = float((near * exact).sum() / exact.square().sum())
print(f"slope {slope:.2f}, signs of Gaussian numbers {2 / torch.pi:.2f}", end="; ")
print(f"{int(((near - exact).abs() > bound).sum())} of {exact.numel()} pairs beyond their bound")
assert bool(((near - exact).abs() <= bound).all()), "a bound that is broken is no bound"
assert 0.3 < slope < 2 / torch.pi, "a sign alone shrinks sizes, and axes are left out besides"

# %%
query = 0
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True)
limits = [float(exact[query].min()), float(exact[query].max())]
left.plot(exact[query], near[query], "o", color=plots.BLUE, markersize=3.5)
left.plot(limits, limits, "--", color=plots.INK, linewidth=0.8, label="identity")
left.plot(limits, [slope * x for x in limits], ":", color=plots.ORANGE, label=f"slope {slope:.2f}")
right.errorbar(exact[query], near[query], yerr=bound[query], fmt="none", ecolor=plots.BLUE, elinewidth=0.6)
right.plot(limits, limits, "--", color=plots.INK, linewidth=0.8, label="identity")
left.set(xlabel="exact score", ylabel="store's score", title="one query, all sequences")
right.set(xlabel="exact score", ylabel="store's score ± its bound", title="the same, with what is proved")
left.legend(), right.legend()
assert bool((near[query] - exact[query]).abs().max() > 0), "one bit is not exact"

# %% [markdown]
# On the left, the points lie on a line, though not on the identity. On the right, every bar crosses the identity: no bound is broken. But the bars are some ten times as long as the scores are wide. What they prove is little, and what is found by order is much. So use a store as a
# search engine. It names candidates; a forward and a backward pass of *these few* gives their exact scores, and only those are shown. That is what `search` does:

# %%
found = store.search(reader, reading_objective, queries[:1], reading, k=10, candidates=20, damping=damping)
share = torch.isin(strongest[0], found.examples[0]).double().mean()
error = (found.scores[0] - exact[0, found.examples[0]]).abs().max() / exact.abs().max()
print(
    f"{found.candidates} of {found.total} sequences computed exactly, {share:.2f} of the exact ten strongest among them"
)
print(f"the last of the ten in place {int(found.places.max())} of the store's order")
assert error < 1e-6, "what search returns are exact scores"
assert share > 0.85, "the first twenty of a store at a quarter of the axes should hold the ten strongest"

# %% [markdown]
# Is the list proved? It is where no bound lets another sequence in, and where one does, the answer says for how many that remains open:

# %%
not_computed = found.total - found.candidates
print(f"proved: {bool(found.proved)}; open for {int(found.open)} of the {not_computed} that were not computed")
assert int(found.open) <= not_computed, "what was computed is not open"

# %% [markdown]
# What is not proved need not be wrong: the ten strongest were found, which we know because here the exact scores can be had. On a large corpus they cannot. Then let some sequences, drawn by chance, be computed exactly too (`audit=`). Their errors say how much of its bound an error
# reaches, but for a share `rate` of all sequences:

# %%
finer = TrainIndex.build(*build, path=folder / "finer", axes=1.0, bits=4)
for what, one in {"one bit on a quarter of the axes": store, "four bits on all axes": finer}.items():
    checked = one.search(*build[:2], queries[:1], reading, 10, candidates=20, damping=damping, audit=9, rate=0.1)
    print(f"{what}: {one.nbytes // len(one):,} bytes a sequence", end=", ")
    print(f"open for {int(checked.open)}, at a rate of {checked.rate} for {int(checked.audited)}")
assert int(checked.audited) < int(checked.open), "an audited bound is the narrower one"

# %% [markdown]
# With one bit the audit changes little, since all scores are too small and every error is large. With four bits on all axes, at sixteen times the bytes, the bound still proves nothing, and the audited one leaves no sequence open. Its promise is of shares:
# of all sequences, on average at most one in ten errs by more than it allows. So whoever has to vouch for a list pays in bytes, or in candidates.
#
# ## Few terms
#
# Digits have another problem. A layer applied once has a gradient $ga^\top$, so all pairs of queries and examples cost $oi$ multiplications each, for a number that came from $o+i$. In the eigenbasis the sides are
# $\tilde g=Q_S^\top g$ and $\tilde a=Q_A^\top a$, and the score is $\sum_{jk}(\tilde g_q\tilde g_n)_j\,(\tilde a_q\tilde a_n)_k\,/\,(\Lambda_{jk}+\lambda)$, sides multiplied number by number.
# Suppose $1/(\Lambda+\lambda)$ were a column of $o$ numbers times a row of $i$ numbers. Then the sum over $j$ and $k$ would fall apart into one over $j$ times one over $k$, at $o+i$. With a few such terms it costs a few times that.
# How few will do? Take the singular values of the matrix, as it is and with weights:

# %%
digits, digit_model, digit_objective = mnist_5k(), mlp(dtype=torch.float64), CrossEntropy()
load_checkpoint(shipped_checkpoint("mnist_mlp"), digit_model, data=(digits.train.inputs, digits.train.labels))
x, y = digits.train.inputs[:2000].double(), digits.train.labels[:2000]
train = list(zip(x.split(500), y.split(500), strict=True))
tests = [(digits.queries.inputs[:50].double(), digits.queries.labels[:50])]
digit_curvature = ekfac(digit_model, digit_objective, train)
assert len(digit_curvature.layers) == 3, "three layers, each applied once a digit"

# %%
first = digit_curvature.layers[0]
Λ = digit_curvature.eigenvalues[first]
inverse = 1 / (Λ + damping_of(digit_curvature, 0.1)[first])
weights = torch.outer(Λ.sum(1), Λ.sum(0))  # how large (g̃_j ã_k)² is on average, as a product
plain, weighted = torch.linalg.svdvals(inverse), torch.linalg.svdvals(weights * inverse)
left = [float((x[8:].square().sum() / x.square().sum()).sqrt()) for x in (plain, weighted)]
print(f"eight terms leave out {left[0]:.3f} of 1/(Λ + λ), and {left[1]:.3f} of it weighted")
assert left[1] > 0, "eight terms are not all"

# %% [markdown]
# The second number is the one that counts. Most entries of $1/(\Lambda+\lambda)$ are $1/\lambda$, in directions that no gradient ever takes: a flat matrix that one term gets right, and that says nothing about scores. The weights ask for precision where
# gradients are. Now the same question of the scores themselves, at ranks from 1 to 32, with the decomposition of the weighted matrix and of the plain one. We look at the median query and at the worst:

# %%
measured = capture(digit_model, digit_objective, *train[0])[first]
of_queries = capture(digit_model, digit_objective, *tests[0])[first]
basis = digit_curvature.Q_A[first], digit_curvature.Q_S[first]
(a_n, g_n), (a_q, g_q) = (
    [side[:, 0] @ Q for side, Q in zip(both, basis, strict=True)] for both in (measured, of_queries)
)


def scored(matrix):
    """Scores in the first layer with this matrix for 1/(Λ + λ)."""
    return torch.einsum("qj,nj,jk,qk,nk->qn", g_q, g_n, matrix, a_q, a_n)


truth = scored(inverse)
assert truth.shape == (50, 500), "a score for each query and digit"

# %%


def by_rank(ranks, weight):
    """Correlations of the median query and of the worst with their exact scores, (ranks, 2)."""
    left_side, values, right_side = torch.linalg.svd(weight * inverse, full_matrices=False)
    result = []
    for rank in ranks:
        scores = scored((left_side[:, :rank] * values[:rank]) @ right_side[:rank] / weight)
        all_queries = [torch.corrcoef(torch.stack(both))[0, 1] for both in zip(scores, truth, strict=True)]
        result.append((torch.stack(all_queries).median(), min(all_queries)))
    return torch.tensor(result)


# %%
ranks = [1, 2, 4, 8, 16, 32]
floor = weights.clamp_min(1e-9 * weights.max())  # an input that is always 0 weighs next to nothing
curves = {"weighted": by_rank(ranks, floor), "plain": by_rank(ranks, torch.ones_like(inverse))}
print(f"terms{'':>18}" + "".join(f"{rank:>9}" for rank in ranks))
for name, values in curves.items():
    for which, row in zip(("median", "worst"), values.T, strict=True):
        print(f"{name:>10}, {which:>6} query" + "".join(f"{value:9.4f}" for value in row))
assert curves["weighted"][3, 1] > 0.99, "eight weighted terms should do"

# %%
figure, ax = plt.subplots()
for (name, values), colour in zip(curves.items(), (plots.BLUE, plots.ORANGE), strict=True):
    ax.semilogx(ranks, values[:, 1], "o-", base=2, color=colour, label=f"{name}, worst query")
    ax.semilogx(ranks, values[:, 0], "o:", base=2, color=colour, markersize=3, label=f"{name}, median query")
ax.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--", label="exact")
ax.set(xlabel="terms", ylabel="correlation with exact scores")
ax.legend(loc="upper center", bbox_to_anchor=(0.55, 0.92), ncols=2)
assert bool((curves["weighted"] > curves["plain"]).all()), "weights help the median query and the worst"

# %% [markdown]
# The plain decomposition comes within 0.7% of the matrix, and its eight terms are of no use for scores: the median query correlates at 0.06 and the worst points the wrong way. Thirty-two leave them at 0.62 and 0.19. Eight weighted terms leave the median query at 0.9993 and the worst at 0.994.
#
# `influence` does so for all layers with `low_rank=`, a rank or a tolerance. It compares a thousand pairs with their exact scores on the way, and says what it found in a note:

# %%
import warnings

whole = influence(digit_model, digit_objective, train, tests, digit_curvature)
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    quick = influence(digit_model, digit_objective, train, tests, digit_curvature, low_rank=8)
print(str(notes[-1].message))
apart = float((quick - whole).norm() / whole.norm())
print(f"over all {whole.numel():,} pairs the error is {apart:.2g} of the scores' root mean square")
assert apart < 0.1, "eight terms should leave a few per cent"

# %% [markdown]
# The note is part of the answer: whoever takes the short way knows what it cost.
#
# ## Few directions
#
# Sequences have no such terms: their gradients are sums over tokens. But queries are few, and the query's side of a score is one matrix $V$ a layer, $(\Lambda+\lambda)^{-1}$ times its gradient. Suppose $V$ were a sum of a few products, each a column of $o$ numbers times a row of $i$. Then it
# meets a sequence token by token, $\sum_t\langle\text{column},g_t\rangle\langle\text{row},a_t\rangle$, and the gradient of the sequence is never built. Grosse et al. do that (section 3.2.2). Count again, for one layer, one sequence and all queries: a built gradient takes $T\,oi$ and meets each query at $oi$;
# at few products each query takes $T(o+i)$ for each of them.

# %%
print("multiplications a sequence and layer, built and met : 16 products a query")
for name, (rows, columns) in {"this notebook, up": (o, i), "52 billion, wide layer": (32768, 8193)}.items():
    for asking in (1, 10, 100):
        built, few = (128 + asking) * rows * columns, asking * 16 * 128 * (rows + columns)
        print(f"{name:24}{asking:4} queries at T = 128: {built / 1e6:12,.1f} : {few / 1e6:12,.1f} million")
assert 16 * (o + i) < o * i, "for one query, sixteen products should cost less than the matrix"

# %% [markdown]
# The wider the layer and the fewer the queries, the more it saves. In our narrow layers ten queries with sixteen products each cost more than they save; in the wide layer of the largest model a hundred of them save six parts in seven.
#
# Which products? The leading singular vectors are nearest to the matrix. But nearness to the matrix is not what is asked: an error counts as training gradients meet it, and these are large along some axes and small along most. As with the few terms, weigh
# each axis by what gradients have there: by the roots of the row sums and the column sums of $\Lambda$. Both ways, for `up`, with what the index and the store's question have in the eigenbasis already:

# %%
met = index.held[up].double()  # rotated gradients of the sequences, (67, o, i)
of_up = prepared[up].double() / (Λ_up + λ_up)  # the queries' side, (10, o, i)
scores_of_up = torch.einsum("qoi,noi->qn", of_up, met)
roots = torch.outer(Λ_up.sum(1), Λ_up.sum(0)).sqrt()
assert scores_of_up.shape == (len(queries), len(passages)), "a score for each query and sequence, but for its sign"

# %%


def worst_cut(counts, weight):
    """The worst query's correlation with its exact scores in `up`, by the number of products."""
    left_side, values, right_side = torch.linalg.svd(weight * of_up, full_matrices=False)
    result = []
    for count in counts:
        cut = (left_side[:, :, :count] * values[:, None, :count]) @ right_side[:, :count] / weight
        near_ones = torch.einsum("qoi,noi->qn", cut, met)
        pairs = zip(near_ones, scores_of_up, strict=True)
        result.append(min(float(torch.corrcoef(torch.stack(both))[0, 1]) for both in pairs))
    return result


# %%
cuts = {"weighted": worst_cut(ranks, roots), "plain": worst_cut(ranks, torch.ones_like(roots))}
print({name: [f"{value:.3f}" for value in values] for name, values in cuts.items()})
figure, ax = plt.subplots()
for (name, values), colour in zip(cuts.items(), (plots.BLUE, plots.ORANGE), strict=True):
    ax.semilogx(ranks, values, "o-", base=2, color=colour, label=name)
ax.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--", label="exact")
ax.set(xlabel="products a query", ylabel="worst query's correlation with exact")
ax.legend()
assert all(one > other for one, other in zip(cuts["weighted"][2:5], cuts["plain"][2:5], strict=True)), "weights help"

# %% [markdown]
# Sixteen products leave the worst query at 0.993 if they are chosen by what gradients meet, and at 0.824 if they are nearest to the matrix. The weights cost two sums over $\Lambda$.
#
# For sequences `low_rank=` means this, with the weights, and its note says what it saved as well:

# %%
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    short = influence(reader, reading_objective, reading, queries[:3], curvature, damping, low_rank=16)
print(str(notes[-1].message))
off = float((short - exact[:3]).norm() / exact[:3].norm())
print(f"over all {short.numel()} pairs the error is {off:.2g} of the scores' root mean square")
assert off < 0.2, "sixteen products a query should leave the scores nearly as they are"

# %% [markdown]
# There is a second saving, of memory. A query's matrices have as many numbers as the layers have weights. So for a large model only a few queries fit in memory at once, and each handful costs a pass of its own over the training data: those passes, not the products, are most of the price. Short queries
# fit all together. Count how often the model reads the training sequences for three queries: with room for one whole query at a time, for all three, and short.

# %%
ways = {"whole, one at a time": {"max_bytes": 8 * numbers // 4}, "whole, together": {}, "short": {"low_rank": 16}}
read, visits = [], {}
hook = reader.register_forward_hook(lambda _, __, logits: read.append(len(logits)))
influence(reader, reading_objective, reading, queries[:1], curvature, damping)  # proves the hooked model's rows
for way, options in ways.items():
    read.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        influence(reader, reading_objective, reading, queries[:3], curvature, damping, **options)
    visits[way] = sum(count for count in read if count > 1) / len(passages)
hook.remove()
bytes_of_query = {way: 8 * (16 * (o + i) * 4 if way == "short" else numbers) for way in ways}
for way, count in visits.items():
    print(f"{way}: passes: {count:.0f}, a query: {bytes_of_query[way] / 1e3:,.0f} kB")
assert list(visits.values()) == [3, 1, 1], "a pass for each group of queries that fits"

# %% [markdown]
# Three queries share one pass as they are, since memory is no matter here. For a model of 135 million parameters a query's MLP matrices take hundreds of megabytes, in single precision. Sixteen products take a twentieth of that or less.
#
# ## Half precision
#
# The model may run in `bfloat16`, at half the bytes. Of a number's digits it keeps eight bits. Activations and gradients come in that precision; the sums over examples must not, or small terms would be lost in large sums. So
# `inflib` adds up in single precision, and decomposes in double. What is left of the scores? Labels are the data's own here, so that both fits see the same ones:

# %%
half = mlp(dtype=torch.bfloat16)
half.load_state_dict({name: value.to(torch.bfloat16) for name, value in digit_model.state_dict().items()})
half.eval()
assert all(p.dtype == torch.bfloat16 for p in half.parameters()), "all of it in half precision"
coarse = [[(x.to(torch.bfloat16), y) for x, y in data] for data in (train, tests)]

# %%
its_curvature = ekfac(half, digit_objective, coarse[0], labels="observed")
its = influence(half, digit_objective, *coarse, its_curvature).double()
its_twin = ekfac(digit_model, digit_objective, train, labels="observed")
ours = influence(digit_model, digit_objective, train, tests, its_twin)
sums = its_curvature.eigenvalues[first].dtype
each = torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(its, ours, strict=True)])
tens = zip(ours.topk(10).indices, its.topk(10).indices, strict=True)
kept_tens = torch.stack([torch.isin(one, other).double().mean() for one, other in tens])
middle, low = each.median(), each.min()
print(f"eigenvalues in {sums}; correlation with double precision: median {middle:.3f}, worst {low:.3f}")
print(f"queries below 0.99: {int((each < 0.99).sum())} of {len(each)}")
print(f"of the ten strongest among the ten strongest: mean {kept_tens.mean():.2f}, worst {kept_tens.min():.2f}")
assert sums == torch.float32, "sums are kept in single precision at least"
assert each.median() > 0.99 and kept_tens.mean() > 0.9, "half precision should leave most queries' order"

# %% [markdown]
# Of 50 queries, 48 keep a correlation of 0.99 and more. The worst is at 0.904, and some query loses two of its ten strongest. A mean would hide both, so look at the worst before you trust half precision. That is one small MLP: for a transformer, repeat these lines.
#
# ## Stop, and go on
#
# Long runs get killed. The sums of a fit are sums: after the first thousand batches they hold all there is to know of these. With `checkpoint=`, a folder, `ekfac` saves them now and then, and its eigenvectors as they are found. The same call goes on from there.
#
# Let us kill one. The child below runs a fit whose data ends its own process at the sixth batch, and no `except` or `finally` survives that. Then we make the same call here.

# %%
child = """
import os, signal, sys
import torch
import inflib, inflib.checkpoint
from inflib.lab import load_checkpoint, mlp, mnist_5k, shipped_checkpoint

inflib.checkpoint.SECONDS = inflib.checkpoint.SHARE = 0  # save after every batch, not every minute
class Ending(list):
    def __iter__(self):
        for at, batch in enumerate(super().__iter__()):
            if at == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
digits, model = mnist_5k(), mlp(dtype=torch.float64)
load_checkpoint(shipped_checkpoint("mnist_mlp"), model)
data = zip(digits.train.inputs[:2000].double().split(200), digits.train.labels[:2000].split(200), strict=True)
inflib.ekfac(model, inflib.CrossEntropy(), Ending(data), labels="sampled", checkpoint=sys.argv[1])
"""
assert "SIGKILL" in child, "no exception, but the end"

# %%
kept = folder / "fit"
ended = subprocess.run([sys.executable, "-c", child, str(kept)])
print("ended by signal", -ended.returncode, "and left", sorted(path.name for path in kept.iterdir()))
assert ended.returncode == -9, "the child was to be killed"

# %%
pieces, came = list(zip(x.split(200), y.split(200), strict=True)), []
hook = digit_model.register_forward_hook(lambda _, __, logits: came.append(len(logits)))
ekfac(digit_model, digit_objective, pieces)  # proves the model's rows, which a session does once
fits, runs = {}, {}
for what, where in (("at once", None), ("after the stop", kept)):
    came.clear()
    fits[what] = ekfac(digit_model, digit_objective, pieces, labels="sampled", checkpoint=where)
    runs[what] = came.count(200)  # whole batches, not the example that is looked at again
hook.remove()
at_once, resumed = fits.values()
print(f"batches through the model: {runs['at once']} at once, {runs['after the stop']} after the stop")
assert runs == {"at once": 20, "after the stop": 15}, "what was summed is not summed again"
for part in ("Q_A", "Q_S", "eigenvalues"):
    ours_, its_ = getattr(at_once, part), getattr(resumed, part)
    assert all(torch.equal(its_[k], ours_[k]) for k in at_once.layers), f"the same bits in {part}"

# %% [markdown]
# A fit walks twice over its ten batches, and the child had come through five of the first walk. The rest gives not nearly the same: the same to the last bit. Labels were sampled here. That does not change it, since example $n$ has its own stream of
# random numbers, whichever process draws from it and when.
#
# ## Several processes
#
# What can be stopped can be shared out. Each process sums over its own stretch of the data, one addition makes the whole, and each decomposes some of the factors. `torchrun` starts the processes, on one machine or on many; `examples/torchrun_fit.py` is
# the fit and the scores of notebook 00, and a store, of which each process writes a shard. The lines that matter are the calls you know, with the processes' `ranks` in front:

# %%
script = Path("..") / "examples" / "torchrun_fit.py"
lines = script.read_text(encoding="utf-8").splitlines()
begin, end = (
    next(n for n, line in enumerate(lines) if text in line) for text in ("with distributed", "options.store:")
)
print("\n".join([*lines[begin:end], next(line for line in lines if "build_store(" in line)]))
assert "distributed.influence" in lines[end - 1], "the fit, then the scores"

# %% [markdown]
# Here it runs on two processes, and compares its scores with those of one:

# %%
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "--check"]
command += ["--store", str(folder / "shared")]
run = subprocess.run(command, capture_output=True, text=True)
print(run.stdout)
assert run.returncode == 0, run.stderr
assert "the same scores as one process" in run.stdout, "two processes must give one process's scores"
assert "in 2 shards" in run.stdout, "a shard from each process"

# %% [markdown]
# A process that dies does not leave the others waiting. They end with an error that names its rank, and with `checkpoint=` the same command goes on from the sums that were saved. `tests/test_distributed.py` kills one and looks.
#
# ## Your model, on paper
#
# Now count for models that nobody runs in a notebook. A transformer of width $d$ has MLP matrices $d\to4d$ and $4d\to d$ in each block. Notebook 12's model has others, so its row is not here. Take $T=512$ tokens, influence through the MLPs only, as Grosse et al. do,
# single precision, and a store of one bit on a quarter of the axes. One row is the case of most readers: 7 billion frozen weights, with LoRA adapters of rank 16 beside the queries' and values' projections. `inflib` counts each adapter as two thin layers.

# %%


def mlps(blocks, width):
    """A transformer's weights in its blocks, and the shapes (o, i) of its MLP matrices."""
    return 12 * blocks * width**2, 2 * blocks * [(4 * width, width + 1)]


models = {"10 M": mlps(8, 320), "135 M": mlps(30, 576), "1 B": mlps(24, 1792), "7 B": mlps(32, 4096)}
models["7 B, LoRA"] = mlps(32, 4096)[0], 2 * 32 * [(16, 4096), (4096, 16)]
models["52 B"] = mlps(64, 8192)
assert 6e9 < models["7 B, LoRA"][0] < 8e9, "an adapter spares no pass through the frozen weights"

# %% [markdown]
# Operations first, for one sequence. A pass takes four a weight and token: two forward, two backward. Training takes six, but the last two make the weights' own gradient. `inflib` needs $a$ and $g$ alone, and
# freezes the weights while it records. A fit is two passes, the sums for $A$ and $S$, and the rotation for $\Lambda$; an index is a pass and a rotation. Scores without an index rotate nothing on the training side: the few queries are rotated, solved and
# turned back once. A sequence's gradient is then built, at $T\,oi$ multiplications, and meets each query at $oi$.

# %%


def paper(weights, shapes, positions=512, asking=20, products=16):
    """{what: operations of a sequence, and once for a fit's eigenvectors}."""
    matrix = sum(rows * columns for rows, columns in shapes)
    sides = sum(rows + columns for rows, columns in shapes)
    squares = sum(rows**2 + columns**2 for rows, columns in shapes)
    late = sum(min(positions, columns) * rows**2 + min(positions, rows) * columns**2 for rows, columns in shapes)
    work = {"pass": 4 * weights * positions, "rotate": 2 * (positions * matrix + late)}
    work |= {"meet": 2 * (positions + asking) * matrix, "meet short": 2 * asking * products * positions * sides}
    summed = 2 * positions * squares * 5 // 8  # A and S, on and above the diagonal
    work["fit"] = 2 * work["pass"] + summed + work["rotate"]
    work["index"], work["query"] = work["pass"] + work["rotate"], work["pass"] + work["meet"]
    work["short query"] = work["pass"] + work["meet short"]
    return work | {"eigenvectors": 9 * sum(rows**3 + columns**3 for rows, columns in shapes)}


# %%
own = paper(mlps(2, 128)[0], list(curvature.shapes.values()), T, len(queries))
turned_back = 2 * sum(rows * columns * (rows + columns) for rows, columns in curvature.shapes.values())
of_queries = len(queries) * (own["index"] + turned_back)
on_paper = {"index": len(passages) * own["index"], "scores": len(passages) * own["query"] + of_queries}
on_paper["fit"] = len(passages) * own["fit"] + own["eigenvectors"]
for what, operations in on_paper.items():
    by_plan = planned[what].operations
    print(f"our own model, {what}: {operations / 1e9:.1f} billion operations on paper, {by_plan / 1e9:.1f} planned")
    low, high = (0.8, 1) if what == "fit" else (1, 1.15)
    assert low < operations / by_plan < high, "four a weight and token; scores build gradients and rotate only queries"

# %% [markdown]
# For index and scores the real pass is a little shorter than on paper. It goes back no further than the first layer that counts, and of two blocks that spares more than of thirty. Attention's own products, of tokens with tokens, are left out on paper.
# The fit is planned longer than on paper, for a *look*. On a later batch, drawn by chance, `inflib` checks that each row of $a$ and $g$ is one example's alone, as on the first. That takes several passes backward: much beside three batches, little beside thousands.
#
# Now for the models, in $10^{12}$ operations a sequence, with twenty queries to meet, whole or as sixteen products each:

# %%
columns_of_work = ["pass", "rotate", "meet", "meet short", "fit", "index", "query"]
print(f"{'10¹² each':10}" + "".join(f"{what:>12}" for what in columns_of_work))
for name, model in models.items():
    print(f"{name:10}" + "".join(f"{paper(*model)[what] / 1e12:12.3f}" for what in columns_of_work))
assert paper(*models["7 B, LoRA"])["pass"] == paper(*models["7 B"])["pass"], (
    "the frozen weights are passed all the same"
)

# %% [markdown]
# In every model whose MLPs count, turning a sequence's gradient for an index costs more than the pass. For adapters the pass is nearly all.
#
# Now bytes. A fit holds both factors of all layers, their eigenvectors and $\Lambda$. With `blocks=at_most(4096)` wide factors are cut along the diagonal. The last column asks how many queries fit on a card of 80 GB beside the model in half precision: whole, and as sixteen products.

# %%
CARD = 80e9  # bytes


def held(weights, shapes, at_most=10**9):
    """{what: bytes}, in single precision, of factors in blocks of at most so many coordinates."""
    of_sides = sum(side**2 / -(-side // at_most) for shape in shapes for side in shape)
    matrix, sides = sum(rows * columns for rows, columns in shapes), sum(map(sum, shapes))
    room = max(CARD - 2 * weights, 0)
    found = {"fit": 4 * (2 * of_sides + matrix), "exact": 4 * matrix, "store": matrix // 32}
    return found | {"whole": int(room // (4 * matrix)), "short": int(room // (4 * 16 * sides))}


# %%
print("           a fit, in blocks     a sequence, stored      10⁴ exact  10⁸ stored   queries on a card, short")
for name, model in models.items():
    row, cut_up = held(*model), held(*model, at_most=4096)["fit"]
    fits = f"{row['fit'] / 1e9:6.1f} GB{cut_up / 1e9:7.1f} GB"
    each_sequence = f"{row['exact'] / 1e6:9,.0f} MB{row['store'] / 1e3:10,.0f} kB"
    many = f"{row['exact'] / 1e8:8.1f} TB{row['store'] / 1e4:9,.0f} TB"
    print(f"{name:10}{fits}{each_sequence}{many}{row['whole']:10,}{row['short']:14,}")
by_count = held(*mlps(2, 128))["exact"] / (4 * numbers)
print(f"our own model's gradient by the same count: {by_count:.3f} of its numbers")
assert abs(by_count - 1) < 0.01, "the down layer has (d, 4d + 1) numbers, the count (4d, d + 1)"

# %% [markdown]
# And time, for $10^5$ sequences and twenty queries. As many whole queries as fit share a pass; `influence` holds up to four times `max_bytes=` of them, so raise it on such a card. At low rank twenty share one. A fit need not see all that is searched, so there is a column for one on 4,000.
# A store is read once a visit; what its few candidates cost is left out. The hours are for $10^{14}$ operations and $2\cdot10^9$ bytes read a second, round numbers: put what your machine does in their place.

# %%
RATE, READ, N = 1e14, 2e9, 10**5
print("hours      a fit  on 4,000    an index   20 queries, passes   low rank   a store read")
for name, model in models.items():
    work, row = paper(*model), held(*model)
    fit, small_fit = ((n * work["fit"] + work["eigenvectors"]) / RATE / 3600 for n in (N, 4000))
    indexed, low = (N * work[what] / RATE / 3600 for what in ("index", "short query"))
    groups = -(-20 // row["whole"]) if row["whole"] else 0
    whole_ones = groups * work["pass"] + paper(*model, asking=20 / max(groups, 1))["meet"] * groups
    asked_whole = f"{N * whole_ones / RATE / 3600:11.2f}{groups:9}" if groups else f"{'–':>11}{'–':>9}"
    line = f"{name:9}{fit:7.2f}{small_fit:10.2f}{indexed:12.2f}{asked_whole}"
    print(line + f"{low:11.2f}{N * row['store'] / READ / 3600:15.2f}")
    assert work["query"] < work["index"] < work["fit"], "a fit takes two passes, and a question rotates nothing"

# %% [markdown]
# Read the tables by what each size *forces*.
#
# - **10 million.** Ten thousand sequences fit on a disk as an exact index, and a hundred thousand fit in memory as a store. For $10^8$ a store takes 21 TB already, and more for each larger model whose matrices count: for such a corpus, search first with something cheaper, such as words.
# - **135 million.** The fit is comfortable. Ten thousand exact gradients, 319 MB each, fill a disk; beyond that, a store.
# - **1 billion.** The factors of all MLPs take 23 GB beside the model, and fit. An index no longer does, and its store of $10^5$ sequences is read for longer than a third of a pass. Low rank asks the twenty queries in one pass, and builds nothing.
# - **7 billion.** What a fit holds, 163 GB, is more than a card of 80 or 141 GB can. `ekfac(..., blocks=at_most(4096))` makes it 56 GB. Or fit layers in groups, one `layers=` after the other, since layers do not mix; each group walks twice over the data. More processes do not help here, for each holds all factors: they share the hours.
#   Three whole queries fit on the card, so twenty take seven passes, 34 hours: twice the fit. At low rank they take one pass, 3.8 hours.
# - **7 billion, adapters.** A gradient is 34 MB in place of 17 GB, and an index of ten thousand sequences is small. The passes are as long as before, 3.7 hours for twenty whole queries, and low rank saves nothing. The factors are less small than the adapters, for each thin matrix has a side as wide as the model.
# - **52 billion.** The weights alone exceed the card. A single factor has $32{,}768^2$ numbers, and even in blocks a fit takes 298 GB. Grosse et al. approximate $A$ and $S$ by blocks, and keep the queries' gradients, at low rank, in place of the training gradients.
#
# ## Summary
#
# The price of a question can be counted before it is asked: bytes from the shapes of the layers, operations from their products. Rotating before the sum or after it is chosen by a count, and so is the form in which gradients are held. A store
# of one bit on a quarter of the axes took a hundredth of the bytes and nearly kept the order of 67 sequences. It proposes, and exact scores of the candidates decide. Layers applied once have a cheaper way, a few weighted terms of $1/(\Lambda+\lambda)$, and for sequences a query can be a few weighted products. Sums can be stopped, resumed and shared out, to
# the same bits or to rounding.
#
# ## Exercises
#
# ### 1. When is a store worth building? (easy, 10 minutes, pencil and paper)
#
# Take the model of 1 billion from the tables. Twenty queries cost 0.71 hours each time that they are asked without a store. Building the store costs an index's 1.45 hours, and a visit to it 0.27, whatever is asked. You will come back with new queries again and again. After how many visits has the store paid for itself?


# %% jupyter={"source_hidden": true}
@exercise
def check_visits(answer):
    assert answer not in (5, 6, 1.45 / 0.27), "compare the two ways with each other: without a store each costs 0.71"
    assert answer != 3, "a visit to the store takes 0.27 hours too: three have cost 2.26 with it and 2.13 without"
    assert answer != 1, "after one visit the store has cost 1.72 hours, the pass 0.71"
    assert answer == 4, "the first whole number of visits with 1.45 + 0.27 visits < 0.71 visits"
    return f"right: four visits cost {1.45 + 4 * 0.27:.2f} hours with the store and {4 * 0.71:.2f} without"


# %%
visits = ...  # your number

check_visits(visits)

# %% [markdown]
# <details><summary>Solution</summary>
#
# A visit saves $0.71-0.27=0.44$ hours, and $1.45/0.44=3.3$: from the fourth visit.
#
# ```python
# visits = 4
# check_visits(visits)
# ```
# </details>

# %% [markdown]
# ### 2. How many queries are few? (medium, 15 minutes)
#
# Above, sixteen products cost less than the matrix for one query, and more for ten, in our narrow layer. Write `break_even(positions, rows, columns, products)`: the number of queries, not necessarily whole, at which both ways cost the same multiplications for a sequence and layer. Return `float("inf")` where products are cheaper for any number.


# %% jupyter={"source_hidden": true}
@exercise
def check_break_even(answer):
    for shape in ((128, 512, 129, 16), (127, 64, 785, 4), (1024, 3072, 769, 1), (128, 32768, 8193, 16)):
        positions, rows, columns, products = shape
        came, short_one = float(answer(*shape)), products * positions * (rows + columns)
        forgot = positions * rows * columns / short_one
        assert abs(came / forgot - 1) > 1e-9, "a built gradient meets each query too, at rows · columns"
        assert came > 0, "below 0, both ways never cost the same: a query's products are cheaper than one meeting"
        more = short_one - rows * columns  # what a query costs more by products
        expected = positions * rows * columns / more if more > 0 else float("inf")
        close = came == expected or abs(came / expected - 1) < 1e-9
        assert close, f"for (positions, rows, columns, products) = {shape} it is {expected:.4g}, not {came:.4g}"
    return f"right: {answer(128, 512, 129, 16):.1f} queries in our layer, and any number in that of 52 billion"


# %%
def break_even(positions, rows, columns, products):
    """The number of queries at which a built gradient and short queries cost the same."""
    return ...  # your answer


check_break_even(break_even)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Built, a gradient costs $T\,oi$ once and $oi$ for each query; in products each query costs $T(o+i)$ for each of them. Where the products of one query cost less than $oi$, they are cheaper for any number.
#
# ```python
# def break_even(positions, rows, columns, products):
#     more = products * positions * (rows + columns) - rows * columns
#     return positions * rows * columns / more if more > 0 else float("inf")
#
#
# check_break_even(break_even)
# ```
# </details>

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - T. George et al. 2018, *Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis*.
