# %% [markdown]
# # 07 · Which digits taught it this?
#
# **The question.** In 2023 N. Rimsky published an experiment that made influence functions easy to picture: a small network trained on
# MNIST, a few test digits, and beside each the ten training digits with the largest influence. Looking at them, she noted that influential digits looked
# sloppier than average, that they resembled the query, that not all of them shared its label, and that some queries seemed to have no influence anywhere.
# Readers added guesses of their own. Are these impressions true? Here we redo the pictures, and then turn every impression into a number with an interval.
#
# **What you need to know.** Notebook 00 (scores, proponents, opponents) and notebook 05 (EK-FAC, damping). Nothing new is derived about the curvature; what
# is new is how to *measure* with it.
#
# **Time.** About 45 minutes to read; it runs in about two minutes on two CPU cores.

# %%
import torch
from matplotlib import pyplot as plt

from inflib import CrossEntropy, damping_of, ekfac, influence, self_influence
from inflib.lab import mnist, network
from inflib.validation import bootstrap
from inflib.widgets import plots

scale = "small"  # "full": MNIST's own 60,000 and 10,000, downloaded once; see the end of the notebook
device = "cuda" if torch.cuda.is_available() else "cpu"
if scale == "small":
    torch.set_num_threads(1)
plots.use_style()

# %% [markdown]
# ## The digits, the network, the scores
#
# 4,500 digits to train on, and 250 queries that no network has seen. Everything below is an average over those 250 queries, with a bootstrap interval: draw 250
# of the 250 again, with replacement, two thousand times, and keep the middle 95% of the averages. Ten pictures may mislead, 250 have a harder time.

# %%
digits, objective = mnist(scale), CrossEntropy()
asked = digits.queries[:: len(digits.queries) // 250]
train = digits.train.batches(device=device, dtype=torch.float64)
ask = asked.batches(device=device, dtype=torch.float64)
X, y = (torch.cat(parts) for parts in zip(*train, strict=True))  # (N, 784), (N,)
x, z = (torch.cat(parts) for parts in zip(*ask, strict=True))  # (250, 784), (250,)
N = len(X)
print(f"{N:,} digits to train on, {len(x)} queries")

# %% [markdown]
# The network is the published one, 784 → 64 → 64 → 10, with one change to its training: the learning rate falls to zero, so that training ends at
# rest (the gradient of its objective has norm 0.03, where a constant rate leaves 0.79). An influence function describes how an *optimum* moves; near one, at least, we should be.

# %%
model = network("settled", digits, scale, device=device)
p = model(x).softmax(-1).detach()  # (250, 10) probabilities
right = p.argmax(1) == z
print(f"{int(right.sum())} of {len(x)} queries are classified correctly")
assert right.double().mean() > 0.9, "this network has not learned: is its checkpoint the right one?"

# %% [markdown]
# Fit EK-FAC, fix the damping at a tenth of each layer's mean eigenvalue, and score every training digit for every query. These damping numbers are used for all methods
# below. One score is then computed by hand, as in notebook 00: the query's gradient against the digit's pull, through the inverse.

# %%
from inflib import capture

curvature = ekfac(model, objective, train)
damping = damping_of(curvature, 0.1)  # {layer: λ}
scores = influence(model, objective, train, ask, curvature, damping)  # (250, N)

n = int(scores[0].argmax())
pairs = [(x[:1], z[:1]), (X[n : n + 1], y[n : n + 1])]  # the first query, its strongest proponent
asks, pulls = (capture(model, objective, *pair, measurement="log_likelihood") for pair in pairs)
moved = curvature.solve({k: pair.matrices() for k, pair in pulls.items()}, damping)
by_hand = sum(float((asks[k].matrices() * moved[k]).sum()) for k in curvature.layers)
assert abs(by_hand / float(scores[0, n]) - 1) < 1e-9, "∇m · (C + λ)⁻¹ (−∇ℓ), each layer with its own λ"
curvature

# %% [markdown]
# ## The published pictures, redone
#
# Ten queries: the first of each class, chosen by nobody. Beside each, its five strongest proponents and opponents, first for this network, then for a small **convolutional** network with half the weights,
# trained on the same digits. For a convolution the same formula holds with one activation and one gradient for each position.


# %%
def strongest(scores, k=10):
    """Positions of the k largest scores of each row, (Q, k); ties by position."""
    return (-scores).argsort(dim=1, stable=True)[:, :k]


cnn = network("cnn", digits, scale, device=device)
cnn_curvature = ekfac(cnn, objective, train)
others = {"CNN": influence(cnn, objective, train, ask, cnn_curvature)}
print(cnn_curvature)

# %% [markdown]
# Each caption is the digit's label and what it contributes to the query's log-likelihood, in nats (score ÷ N, so that taking the digit away is predicted to cost it). Look along a row: do the ten resemble the query?
# Are they good specimens? Then compare the two halves, and then look at the numbers.


# %%
def of(q, scores):
    """Five proponents and five opponents of query q: pictures and captions."""
    rows = torch.cat([strongest(scores[[q]], 5)[0], strongest(-scores[[q]], 5)[0]])
    captions = [f"{y[n]}: {scores[q, n] / N:+.0e}".replace("e-0", "e-") for n in rows]
    return [*digits.train.images[rows.cpu()]], captions


pictures, captions = [], []
for q in [int((z == c).nonzero()[0]) for c in range(10)]:
    (ours, our_captions), (theirs, their_captions) = of(q, scores), of(q, others["CNN"])
    pictures.append([asked.images[q], None, *ours, None, *theirs])
    captions.append([f"{z[q]}, p {p[q, z[q]]:.2f}", "", *our_captions, "", *their_captions])
headings = {0: "query", 2: "proponents", 7: "opponents", 13: "CNN: proponents", 18: "opponents"}
_ = plots.picture_table(pictures, captions, headings)
assert len({len(row) for row in captions}) == 1, "a row is too short: has a query fewer than five of a sign?"

# %% [markdown]
# It does look as it was described. There are crossed, broken and tilted specimens; most proponents have the query's label and its slant; opponents look like other digits that could be taken for it, or like
# the query and carry another label. The two networks show different digits of the same kind. And the contributions span orders of magnitude, from a
# millionth of a nat to a tenth: the rows look equally meaningful, their numbers do not.
#
# How much of a row is the *data*, how much the *network*? Compare the ten strongest proponents with those of the CNN, and, as a yardstick, with those of the same network trained from another seed.


# %%
def overlap(a, b):
    """How many of a's k rows are in b, for each query: (Q,)."""
    return (a[:, :, None] == b[:, None, :]).sum((1, 2)).double()


models = {name: network(name, digits, scale, device=device) for name in ("reseeded", "jacobian")}
for name, other in models.items():
    others[name] = influence(other, objective, train, ask, ekfac(other, objective, train))
for name in ("reseeded", "CNN"):
    shared = bootstrap(overlap(strongest(scores), strongest(others[name])))
    print(f"{name:9} {shared:.1f} of the ten strongest proponents in common")
    assert shared.low > 20 * 10 * 10 / N, "hardly more than chance: are the columns the same training digits?"

# %% [markdown]
# Another seed keeps little more than half of the ten, another architecture a third, and chance would give 0.02. So a picture like the one above is partly a portrait of one training run. Whatever we
# say about influential digits should be a statement about averages.
#
# ## First impression: they are sloppy
#
# "Sloppy" as the network sees it: what are its **loss** and its **margin** (the log odds of the label) on the influential training digits? We take the ten largest scores of either sign, and for comparison ten random training digits, and
# ten random digits *with the same labels* as the influential ones, since some classes are harder than others.

# %%
generator = torch.Generator().manual_seed(0)


def same_label(rows):
    """For each of these training digits another one, random, with its label."""
    order, counts = y.cpu().argsort(stable=True), torch.bincount(y.cpu())
    start, labels = counts.cumsum(0) - counts, y[rows].cpu()
    draw = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
    return order[start[labels] + (draw * counts[labels]).long()].to(device)


groups = {
    name: strongest(s) for name, s in {"either sign": scores.abs(), "proponents": scores, "opponents": -scores}.items()
}
groups["same labels"] = same_label(groups["either sign"])
groups["random"] = torch.randint(N, (len(x), 10), generator=generator).to(device)
assert torch.equal(y[groups["same labels"]], y[groups["either sign"]]), "a stand-in has another label"

# %% [markdown]
# A group is a table (250, 10) of training digits. For any property of training digits, average it over a query's ten, then over the queries.


# %%
def compare(columns, names=("either sign", "proponents", "opponents", "same labels", "random")):
    """Print the mean of each property {name: (N,)} over each group, with its interval."""
    print(" " * 13 + "".join(f"{column:>22}" for column in columns))
    for name in names:
        cells = [f"{bootstrap(values[groups[name]].mean(1)):.2f}" for values in columns.values()]
        print(f"{name:13}" + "".join(f"{cell:>22}" for cell in cells))


f = model(X).detach()
loss, margin = objective.loss(f, y), objective.margin(f, y)
compare({"loss": loss, "margin": margin})
extra = bootstrap((loss[groups["either sign"]] - loss[groups["same labels"]]).mean(1))
assert extra.low > 0, "influential digits are not less clear: is the loss taken on the training digits?"

# %% [markdown]
# The impression is true, and strongly so. On the influential digits the network's loss is ten times the average, and its margin is near *zero*: it hardly knows their labels although it was trained on them. Same-label stand-ins are ordinary, so it is not
# a matter of hard classes.
#
# But before we marvel: could it have been otherwise? The score is linear in the pull $-\nabla\ell_n$, whose length is nearly proportional to $1-p_n$. A digit that the network is sure of has *no* pull, toward any query. So a long list of scores, sorted
# by size, must begin with unclear digits, whatever their direction. To take the length out, divide each score by the length of the pull in the metric of the inverse curvature, which is the root of its self-influence. What is left is the *direction*: a
# cosine, up to one factor for each query. Barshan et al. (2020) rank by this and call it relative influence. The assertion is the Cauchy–Schwarz inequality, which knows nothing of networks.

# %%
own = self_influence(model, objective, train, curvature, damping)  # (N,) ∇ℓᵀ (C + λ)⁻¹ ∇ℓ
asked_own = self_influence(model, objective, ask, curvature, damping)  # (250,)
cosine = scores / (own.sqrt() * asked_own[:, None].sqrt())  # (250, N)
assert cosine.abs().max() <= 1 + 1e-9, "a cosine above 1: other damping in the scores than in the self-influence?"

groups["by direction"] = strongest(cosine.abs())
compare({"loss": loss, "margin": margin}, ("either sign", "by direction", "random"))
assert bootstrap((loss[groups["by direction"]] - loss[groups["random"]]).mean(1)).high < 0, (
    "expected clearer than random"
)

# %% [markdown]
# Ranked by direction, the top digits are *clearer* than random ones. The first impression is a true observation with a dull reason: unclear digits have long gradients.
#
# ### A judge that has never seen the network
#
# Loss and margin are the network's opinion, and the network also made the scores. An independent judge of clarity: look at each digit's ten nearest other training digits, by pixels. Which share of them carries another label? A plain specimen lies among its own
# kind. And one of the readers' guesses was that influential digits are the nearest points to the *decision boundary*. To first order that distance is the smallest gap between the top output and another one, divided by how fast that gap changes with the pixels:
#
# $$d(x) = \min_{c \ne \hat c}\; \frac{f_{\hat c}(x) - f_c(x)}{\lVert\nabla_x (f_{\hat c} - f_c)\rVert}.$$

# %%
from torch.func import jacrev, vmap


def to_boundary(model, inputs):
    """First-order distance to the nearest decision boundary, and the step that leads there: (B,), (B, 784)."""
    f = model(inputs).detach()
    J = vmap(jacrev(lambda v: model(v[None])[0]))(inputs).detach()  # (B, 10, 784)
    top, rows = f.argmax(1), torch.arange(len(f))
    gap, slope = f[rows, top][:, None] - f, J[rows, top][:, None] - J
    distance = gap / slope.norm(dim=2)
    distance[rows, top] = torch.inf
    nearest = distance.argmin(1)
    d, slope = distance[rows, nearest], slope[rows, nearest]
    return d, -slope * (d / slope.norm(dim=1))[:, None]


# %% [markdown]
# Is the first order good enough? Walk: from each query take the step, and see which part of the gap to the runner-up is left. For a network that is linear along the way nothing is left.

# %%
d, step = to_boundary(model, x)
two = model(x).topk(2).values.detach()
there = model(x + step).topk(2).values.detach()
left = ((there[:, 0] - there[:, 1]) / (two[:, 0] - two[:, 1])).median()
print(f"median distance {d.median():.2f}; of the gap to the runner-up, {left:.0%} is left there (the median)")
assert left < 0.25, "the step does not reach the boundary: is it along −∇(f_top − f_c)?"

# %% [markdown]
# Good enough. Distances are in units of the inputs, where one pixel from black to white is a step of 2: *one* pixel, turned, would carry many digits across. Now all training digits.

# %%
from inflib.lab.neighbours import disagreement

distance = torch.cat([to_boundary(model, inputs)[0] for inputs, _ in train])  # (N,)
chosen = torch.cat([rows.flatten() for rows in groups.values()]).unique()
strange = torch.full_like(distance, torch.nan)  # known for the digits in some group
strange[chosen] = disagreement(X, y, chosen)
compare({"to boundary": distance, "strange neighbours": strange}, groups)
nearer = bootstrap((distance[groups["either sign"]] - distance[groups["same labels"]]).mean(1))
assert nearer.high < 0, "influential digits should lie nearer the boundary"

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for ax, values, what in zip(axes, (margin, distance), ("margin (nats)", "distance to the boundary"), strict=True):
    low, high = float(values.quantile(0.001)), float(values.quantile(0.999))
    for name in ("either sign", "by direction", "random"):
        found = values[groups[name]].flatten().cpu().clamp(low, high)
        ax.hist(found, bins=40, range=(low, high), histtype="step", density=True, label=name)
    ax.set(xlabel=f"{what} of the training digits", yticks=[])
axes[0].set_ylabel("density")
_ = axes[1].legend()
assert margin[groups["either sign"]].median() < margin[groups["random"]].quantile(0.1), "the curves should lie apart"

# %% [markdown]
# Both judges agree with the network. More than half of an influential digit's neighbours carry another label, against one in eight, and it lies five times nearer the boundary. (Opponents are the extreme: two thirds of their neighbours
# disagree with them.) Readers' guess confirmed, with the same reservation: ranked by direction (orange) the digits are as far from the boundary as any, or farther.
#
# ## Second impression: they resemble the query
#
# Rank all training digits by their distance to the query, in pixels, or in the last hidden layer's activations (features). Where do the influential ones stand, from 0 (nearest) to 1? Chance is ½. But most proponents share the query's label, and a 4
# is nearer to a 4 anyway; so the second column ranks each digit only among those of *its own* label.


# %%
def places(distances):
    """Each training digit's place by distance to each query, (Q, N) from 0 to 1: among all, and among its own label."""
    place = lambda D: D.argsort(dim=1, stable=True).argsort(dim=1).double() / D.shape[1]  # noqa: E731
    within = torch.empty_like(distances)
    for c in range(10):
        within[:, y == c] = place(distances[:, y == c])
    return place(distances), within


features = model[:-1]  # everything but the last layer
near = {"pixels": places(torch.cdist(x, X)), "features": places(torch.cdist(features(x), features(X)).detach())}
for name, rows in groups.items():
    cells = [f"{bootstrap(place.gather(1, rows).mean(1)):.2f}" for kind in near.values() for place in kind]
    print(f"{name:13}" + "".join(f"{cell:>20}" for cell in cells))
assert bootstrap(near["pixels"][0].gather(1, groups["random"]).mean(1)).low < 0.5, "random digits should stand at ½"

# %% [markdown]
# (Columns: pixels among all, pixels among its own label, features among all, features among its own label.) The impression is true, and smaller than it looks. Influential digits stand at about the nearest seventh by pixels; of that, the label explains a part: among digits of
# their own label proponents stand at a third, where chance is a half. Opponents resemble the query *more* than proponents do, within their label: it takes a look-alike with the wrong label to hurt.
#
# Ranked by direction, though, the digits are the query's nearest neighbours: in the nearest two per cent. So the scores know about resemblance, and bury it under the lengths of the gradients.
#
# ## Third impression: not all share the query's label
#
# How often does an influential digit carry *another* label? And when it does, is it the class that the network had second in mind?

# %%
other = (y[None] != z[:, None]).double()  # (250, N)
second = p.scatter(1, z[:, None], -1.0).argmax(1)  # the likeliest class that is not the label
rival = (y[None] == second[:, None]).double()
for name, rows in groups.items():
    cells = [f"{bootstrap(share.gather(1, rows).mean(1)):.2f}" for share in (other, rival)]
    print(f"{name:13} another label {cells[0]}   the rival's label {cells[1]}")
assert bootstrap(other.gather(1, groups["proponents"]).mean(1)).low > 0, "some proponents carry other labels"

# %% [markdown]
# True. One proponent in six has another label: a 7 that teaches what a 4 is not. Nine of ten opponents have another label, as would nine of ten random digits; but nearly half of them carry the rival's, where chance is a tenth. And one opponent
# in ten has the query's *own* label: a specimen so strange that fitting it pulls the other way.
#
# ## Fourth impression: some queries have no influence anywhere
#
# In the published experiment, queries whose influences were all nearly zero were filtered out. Which are they? Take for each query the largest contribution of any training digit, $\max_n|\text{score}|/N$ in nats, and set it against the network's doubt $1-p$.

# %%
from inflib.validation import rank_correlation

largest = scores.abs().max(dim=1).values / N  # (250,)
doubt = 1 - p.gather(1, z[:, None])[:, 0]
tenths = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=device)
low, middle, high = largest.quantile(tenths).tolist()
print(f"largest contribution: {low:.1e} (tenth percentile), {middle:.1e} (median), {high:.1e} (ninetieth)")
print(f"rank correlation with the network's doubt: {rank_correlation(largest, doubt):.3f}")
print(f"{(largest < 1e-3).double().mean():.0%} of the queries have no contribution above a thousandth of a nat")
assert rank_correlation(largest, doubt) > 0.9, "the doubt should decide: is the query's own label measured?"

# %% [markdown]
# The doubt decides, and almost nothing else. The reason is in the measurement: $m = \log p$ and $\nabla m = (1-p)\,\nabla\log\frac{p}{1-p}$. Where the network is sure, the log-likelihood cannot be raised any more, and its gradient vanishes. Ask for the log odds (the margin) in place of the
# log-likelihood and the factor is gone. No score need be computed anew: dividing by $1-p$ is exact, and we check that on ten queries.

# %%
few = [(x[:10], z[:10])]
odds = influence(model, objective, train, few, curvature, damping, measurement="margin")
assert torch.allclose(odds * doubt[:10, None], scores[:10], rtol=1e-6), "∇ log p = (1 − p) ∇ log odds"

largest_odds = largest / doubt
low, middle, high = largest_odds.quantile(tenths).tolist()
print(f"largest contribution to the log odds: {low:.2f}, {middle:.2f}, {high:.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for ax, values, what in zip(axes, (largest, largest_odds), ("log-likelihood", "log odds"), strict=True):
    ax.scatter(doubt[right].cpu(), values[right].cpu(), s=10, label="classified correctly")
    ax.scatter(doubt[~right].cpu(), values[~right].cpu(), s=14, marker="x", label="misclassified")
    ax.set(xscale="log", yscale="log", xlabel="doubt 1 − p of the query", title=f"of the {what}")
axes[0].set_ylabel("largest contribution (nats)")
_ = axes[0].legend(loc="lower right")
assert largest_odds.max() / largest_odds.min() < (largest.max() / largest.min()) ** 0.5, "the odds should spread less"

# %% [markdown]
# Half of this impression survives. There *are* queries whose log-likelihood no digit could move, one in six by this threshold, and what sets them apart is only that the network is sure of them. Measured by the log odds, where a sure answer can still be made surer, all queries lie in a band: four
# fifths of them within a factor of three. No query is without influences; some are without need of them. Since $1-p$ is one factor for a whole row, the *pictures* are the same either way.
#
# ## Would another method show the same?
#
# The same queries, the same damping numbers, three curvatures: EK-FAC, K-FAC, and none at all (the gradient dot product). And a fourth: EK-FAC fitted on the first 300 training digits only, as the published program did to save time. How well does each correlate with EK-FAC, query by query, and how different are the impressions?


# %%
def correlation(a, b):
    """Pearson's correlation of two tables of scores across the training digits, (Q,)."""
    a, b = (s - s.mean(dim=1, keepdim=True) for s in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def describe(name, other_scores):
    """One line: correlation and overlap with EK-FAC, then three of the impressions."""
    rows = strongest(other_scores)
    agree = correlation(other_scores, scores), overlap(rows, groups["proponents"])
    seen = loss[rows].mean(1), near["pixels"][0].gather(1, rows).mean(1), other.gather(1, rows).mean(1)
    cells = [f"{bootstrap(values):.2f}" for values in (*agree, *seen)]
    print(f"{name:13}" + "".join(f"{cell:>20}" for cell in cells))


# %% [markdown]
# `three_methods` gives all three in EK-FAC's basis, so that one index of the training digits answers for all.

# %%
from inflib import TrainIndex
from inflib.widgets import three_methods

methods = three_methods(model, objective, train, curvature)
index = TrainIndex.build(model, objective, train, curvature)
prepared = index.prepare(model, objective, ask)
found = {name: index.scores(prepared, C, damping) for name, C in methods.items()}
assert torch.allclose(found["EK-FAC"], scores, rtol=1e-6, atol=1e-9), "the index gives other scores than influence"

on_few = ekfac(model, objective, digits.train[:300].batches(device=device, dtype=torch.float64))
found["on 300 digits"] = influence(model, objective, train, ask, on_few, damping)
print(
    " " * 13
    + "".join(f"{c:>20}" for c in ("correlation", "of 10 in common", "loss", "place by pixels", "another label"))
)
for name, table in found.items():
    describe(name.replace("gradient dot product", "gradient dot"), table)

# %% [markdown]
# EK-FAC and K-FAC are hardly to be told apart: they share nine of ten, and every impression. The plain gradient dot product shares three of ten. It too finds digits with a large loss, larger even, for nothing shortens long gradients; it resembles the query less; and it returns to the same few digits for many queries. Had the published pictures been
# made with it, the conclusions in words would have been the same. That is a warning about conclusions in words: the published program multiplied by the eigenvalues where it should have divided, its scores had a correlation of −0.01 with the right ones, and nobody saw it in the pictures. Fitting on 300 digits is a real approximation, and a tolerable one.
#
# ## What would Jacobian regularisation change?
#
# A reader asked what happens if the network is made less sensitive to its input. The network `jacobian` had $\tfrac{0.01}{2}\lVert\partial f/\partial x\rVert^2$ added to its objective (Hoffman et al. 2019), and nothing else changed. So much is easy to show; the harder part is the yardstick, since *any* second training run gives other influences. It is there already: the
# network that differs by its seed alone.

# %%
for name, other_model in {"settled": model, **models}.items():
    x_distance = to_boundary(other_model, x)[0]
    correct = (other_model(x).argmax(1) == z).double()
    print(
        f"{name:9} correct {bootstrap(correct):.2f}   distance of the queries to the boundary {bootstrap(x_distance):.2f}"
    )
assert (to_boundary(models["jacobian"], x)[0] > to_boundary(model, x)[0]).double().mean() > 0.5, "it is not smoother"

# %%
print(
    " " * 13
    + "".join(f"{c:>20}" for c in ("correlation", "of 10 in common", "loss", "place by pixels", "another label"))
)
for name, table in {"settled": scores, "reseeded": others["reseeded"], "jacobian": others["jacobian"]}.items():
    describe(name, table)
a, b = (overlap(strongest(others[name]), groups["proponents"]) for name in ("jacobian", "reseeded"))
print(f"of 10 in common, jacobian minus reseeded: {bootstrap(a - b):.2f}")
labels = [other.gather(1, strongest(others[name])).mean(1) for name in ("jacobian", "reseeded")]
print(f"another label, jacobian minus reseeded: {bootstrap(labels[0] - labels[1]):.2f}")
assert bootstrap(labels[0] - labels[1]).high < 0, "fewer proponents of other labels were expected"

# %% [markdown]
# The regularised network is farther from its boundaries. *Which* digits are influential changes no more than by another seed: the difference in overlap is within its interval. What *kind* they are does change, by more than a seed does: its proponents carry another label half as often, and are a little nearer the query. A smoother network
# draws more on the query's own class. (Its scores use the curvature of the cross-entropy; the penalty's own curvature is left out, as it is in every such comparison we know of.)
#
# ## Mislabels
#
# The most practical use of influence is to find wrong labels. Flip 10% of the training labels, train, and rank the training digits by suspicion. Four rankings:
#
# - **loss**: what anybody would try first;
# - **gradient norm** $\lVert\nabla\ell_n\rVert$;
# - **self-influence** $\nabla\ell_n^\top(C+\lambda)^{-1}\nabla\ell_n$: an example that moves its own prediction much stands alone;
# - **harm**: minus the sum of its scores on clean queries. It needs clean labels, the others do not.
#
# Two networks have seen these labels. One has weight decay and learned a tenth of the wrong ones. The other has none, trained longer, and learned nearly all of them by heart.

# %%
from inflib.validation import auc, flip_labels, placements, recall

noisy, wrong = flip_labels(digits.train.labels, 0.1)
noisy, wrong = noisy.to(device), wrong.to(device)
noisy_train = list(zip(X.split(500), noisy.split(500), strict=True))
trained = {name: network(name, digits, scale, device=device) for name in ("flipped", "memorised")}
for name, m in trained.items():
    guess = torch.cat([m(inputs).argmax(1) for inputs, _ in noisy_train])
    learned, restored = (guess == noisy)[wrong].double().mean(), (guess == y)[wrong].double().mean()
    print(
        f"{name:9} predicts {learned:.0%} of the {int(wrong.sum())} wrong labels, {restored:.0%} of the right ones behind them"
    )
    assert (learned > 0.9) == (name == "memorised"), "the two networks should differ in what they memorised"

# %% [markdown]
# The harm needs a sum over many queries. A sum of scores is the score of the summed gradient, so one preconditioned matrix for each layer will do, and no table of queries × digits is built:
# $\sum_q \nabla m_q^\top (C+\lambda)^{-1}(-\nabla\ell_n) = -\,g_n^\top P\, a_n$ with $P = (C+\lambda)^{-1}\sum_q\nabla m_q$.


# %%
def help_given(m, C, λ):
    """Each training digit's summed influence on the log-likelihoods of all clean queries, (N,)."""
    clean = digits.queries.inputs.to(X), digits.queries.labels.to(device)
    gradients = capture(m, objective, *clean, measurement="log_likelihood")
    P = C.solve({k: pair.matrices().sum(0, keepdim=True) for k, pair in gradients.items()}, λ)
    total = []
    for batch in noisy_train:
        pairs = capture(m, objective, *batch)
        total.append(-sum(((pair.g[:, 0] @ P[k][0]) * pair.a[:, 0]).sum(1) for k, pair in pairs.items()))
    return torch.cat(total)


m = trained["flipped"]
C = ekfac(m, objective, noisy_train)
table = influence(m, objective, noisy_train[:1], digits.queries.batches(device=device, dtype=torch.float64), C)
assert torch.allclose(help_given(m, C, None)[:500], table.sum(0), rtol=1e-6), "a sum of scores is the sum's score"

# %% [markdown]
# Now the four rankings on both networks. AUC is the probability that a wrong label ranks above a right one (½ is blind); recall is the share of the wrong ones found after inspecting the most suspicious 10% or 20%. Which ranking wins on the left, and which on the right?


# %%
def rankings(m):
    """{name: suspicion (N,)} of every training digit under its given label."""
    C = ekfac(m, objective, noisy_train)
    found = TrainIndex.build(m, objective, noisy_train, C)
    losses = torch.cat([objective.loss(m(inputs).detach(), labels) for inputs, labels in noisy_train])
    harm = -help_given(m, C, damping_of(C, 0.1))
    return {"loss": losses, "gradient norm": found.norms(), "self-influence": found.self_influence(), "harm": harm}


suspicion = {name: rankings(m) for name, m in trained.items()}
for network_name, table in suspicion.items():
    for name, s in table.items():
        marks = (
            f"AUC {auc(s, wrong):.3f}   recall at 10% {recall(s, wrong, 0.1):.2f}   at 20% {recall(s, wrong, 0.2):.2f}"
        )
        print(f"{network_name:9}  {name:14}  {marks}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
inspected = [k / 100 for k in range(1, 51)]
for ax, (name, table) in zip(axes, suspicion.items(), strict=True):
    ax.plot(inspected, [min(10 * k, 1) for k in inspected], color=plots.GREY, linestyle="--", label="perfect")
    for kind, s in table.items():
        ax.plot(inspected, [recall(s, wrong, k) for k in inspected], label=kind)
    ax.set(xlabel="share of the training digits inspected", title=f"the network {name!r}", ylim=(0, 1.03))
axes[0].set_ylabel("share of the wrong labels found")
_ = axes[1].legend(loc="lower right")
gain = {k: placements(s["self-influence"], wrong) - placements(s["loss"], wrong) for k, s in suspicion.items()}
for name, difference in gain.items():
    print(f"{name:9}  AUC of self-influence minus AUC of the loss: {bootstrap(difference):+.3f}")
assert bootstrap(gain["memorised"]).low > 0, "where it was memorised, a wrong label has a small loss"

# %% [markdown]
# On the network that resisted, the *loss* does as well as anything, for the price of a forward pass: self-influence is within a quarter of a per cent of it in AUC, and costs a curvature. On the network that memorised, the wrong labels have small losses like everybody else, every ranking gets worse, and self-influence is the best of them: what was learned by heart leans on
# few weights and on no other example, and the curvature shows it. Harm, which alone had the benefit of clean labels, is far behind on both: with 10% of the labels wrong, much of what a wrong label breaks is mended by others.
#
# What do they find? The ten most suspicious digits of each network by self-influence, the given label first, the true one behind it.

# %%
for name in trained:
    rows = strongest(suspicion[name]["self-influence"][None])[0]
    captions = [f"{noisy[n]} for {y[n]}" for n in rows]
    _ = plots.images(digits.train.images[rows.cpu()], captions, title=f"most suspicious for {name!r}")
    caught = int(wrong[rows].sum())
    print(f"{name}: {caught} of the first 10 were flipped")
    assert caught >= 5, "fewer than half are flips: are the given labels used?"
