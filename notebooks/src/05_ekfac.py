# %% [markdown]
# # 05 · What does the eigenvalue correction buy?
#
# **The question.** Notebook 04 replaced each layer's block of the Gauss-Newton Hessian by a Kronecker product,
# $G_l \approx S \otimes A$, which two small eigenproblems invert. Its eigen*vectors* come for the price of two small
# matrices; its eigen*values* are forced to be products $\sigma_j \kappa_k$. What if we keep the vectors, and measure the
# values afresh? That is EK-FAC, and the last step of the derivation. How much better is it: as a matrix, as an inverse, and in the
# scores that we want? At the end the whole method stands on one page, from data to score, without `inflib`.
#
# **What you need to know.** Symbols: [one table](notation.md). Notebook 04: $A$, $S$, the two assumptions of K-FAC, damping. Eigendecompositions, and that an
# orthogonal change of basis keeps the Frobenius norm. Numbers in brackets are the equations of Grosse et al. 2023.
#
# **Time.** About 60 minutes to read; it runs in about a minute on two CPU cores.

# %%
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt

from inflib.lab import exercise
from inflib.widgets import plots

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # before any model is built
plots.use_style()

# %% [markdown]
# ## The network of notebooks 03 and 04
#
# Five hundred digits of 7 × 7 pixels, a network 49 → 8 → 10, and the exact Gauss-Newton Hessian to measure everything
# against: 490 rows, small enough to hold. `train` is the list of batches that `inflib` takes; `ask` holds fifty digits that
# the network has never seen.

# %%
from inflib import CrossEntropy
from inflib.lab import mlp, mnist_5k
from inflib.lab import train as fit

digits, objective = mnist_5k(), CrossEntropy()


def pooled(some):
    return F.avg_pool2d(some.inputs.double().reshape(-1, 28, 28), 4).flatten(1)  # (N, 49)


X, y = pooled(digits.train[:500]), digits.train.labels[:500]
train = [(X, y)]
ask = [(pooled(digits.queries[::10]), digits.queries.labels[::10])]
print(len(X), "to train on,", len(ask[0][0]), "to ask about")

# %%
from inflib import gauss_newton


def trained(sizes, epochs=100, **options):
    model = mlp(sizes, seed=0, dtype=torch.float64, **options)
    fit(model, objective, X, y, epochs=epochs, batch_size=50, lr=3e-3, weight_decay=5e-3, progress=False)
    return model


model = trained((49, 8, 10))
G = gauss_newton(model, objective, train)
G_hidden = G.to_dense()[:400, :400]  # the block of hidden1, 8 × 50 numbers
assert G.shapes["hidden1"] == (8, 50), "hidden1 has 49 inputs and a bias"

# %% [markdown]
# ## The basis that K-FAC gives us
#
# Diagonalise the two factors: $A = Q_A\,\mathrm{diag}(\kappa)\,Q_A^\top$ and $S = Q_S\,\mathrm{diag}(\sigma)\,Q_S^\top$. Because
# $(M \otimes E)(M' \otimes E') = MM' \otimes EE'$, their Kronecker product is then diagonal as well:
#
# $$S \otimes A = (Q_S \otimes Q_A)\,\big(\mathrm{diag}(\sigma) \otimes \mathrm{diag}(\kappa)\big)\,(Q_S \otimes Q_A)^\top. \qquad [18]$$
#
# The columns of $U = Q_S \otimes Q_A$ are K-FAC's eigenvectors: 400 vectors of length 400, kept as an 8 × 8 and a 50 × 50
# matrix. We build both factors from `inflib`'s sums of $a a^\top$ and $g g^\top$
# ([`accumulate_moments`](../inflib/kfac.py), as derived in notebook 04) and look at nothing else yet.

# %%
from inflib.kfac import second_moments

moments = second_moments(model, objective, train)
A, S = moments.A("hidden1"), moments.S("hidden1")  # (50, 50), (8, 8)
κ, Q_A = torch.linalg.eigh(A)
σ, Q_S = torch.linalg.eigh(S)
U = torch.kron(Q_S, Q_A)  # (400, 400)
Λ_kfac = torch.outer(σ, κ)  # (8, 50): one eigenvalue for each pair (j, k)
rebuilt = U @ torch.diag(Λ_kfac.flatten()) @ U.T
assert torch.allclose(rebuilt, torch.kron(S, A), atol=1e-12), (
    "row-major: S comes first, and Q's columns are eigenvectors"
)

# %% [markdown]
# ## Are those eigenvalues true?
#
# Write the exact block in K-FAC's basis, $U^\top G_l U$. If K-FAC were exact, this matrix would be diagonal, with
# $\sigma_j\kappa_k$ along its diagonal. There are thus two ways to be wrong. Entries *off* the diagonal cannot be mended by any choice of
# eigenvalues. A diagonal that *differs* can be mended at once. In the left picture look for what stands off the diagonal, in the right one
# for how far the points lie from the line at 1.

# %%
in_basis = U.T @ G_hidden @ U
truth = in_basis.diagonal()  # what U's columns really see: uᵀ G u
order = truth.argsort(descending=True)[:150]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
plots.matrix(left, in_basis[order[:50]][:, order[:50]].abs().sqrt(), "√|UᵀGU|, 1 and more in full colour", limit=1)
left.set(xlabel="eigenvector u (the 50 with the largest uᵀGu)", ylabel="eigenvector u")
ratio = truth[order] / Λ_kfac.flatten()[order]
right.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--")
right.scatter(Λ_kfac.flatten()[order], ratio, s=10)
right.set(xscale="log", xlabel="K-FAC's eigenvalue σ_j κ_k", ylabel="exact uᵀGu / K-FAC's", title="the 150 largest")
print(f"exact / K-FAC: of the six largest {ratio[:6].min():.2f} to {ratio[:6].max():.2f}", end="; ")
print(f"of all 150 {ratio.min():.2f} to {ratio.max():.2f}")
assert ratio.min() < 0.8, "K-FAC should overstate some large eigenvalues: is G built with the same labels?"
assert (
    (order[:6] % 50 == 49).all() and order[6] % 50 != 49 and (Q_A[:-1, -1] @ F.normalize(X.mean(0), dim=0)).abs() > 0.9
), "not the mean image"

# %% [markdown]
# The diagonal stands out, so the eigenvectors are useful. But it is not alone: the few largest are coupled to all the others.
#
# On the right, K-FAC's eigenvalues are right in order of magnitude and wrong in detail. The six largest are made with $A$'s top
# eigenvector, which is nearly the mean image; they are good to a few per cent. The many behind them are off by tens of per cent,
# some up, some down. The reason is the second assumption of notebook 04: a product $\sigma_j\kappa_k$ would be right if $g$ and $a$
# were independent.
#
# ## The correction
#
# So measure them. The number that eigenvector $u_{jk}$ should have is $u_{jk}^\top G_l\, u_{jk}$. Here $G_l$ is the mean of
# $D\theta D\theta^\top$ over examples, with labels drawn from the model. The vector $u_{jk}$ is column $j$ of $Q_S$ times column $k$ of
# $Q_A$. Its product with a flattened gradient matrix is one entry of the rotated matrix:
#
# $$\Lambda_{jk} = u_{jk}^\top\,\mathbb E[D\theta D\theta^\top]\,u_{jk} = \mathbb E\big[(u_{jk}^\top D\theta)^2\big]
# = \mathbb E\Big[\big(Q_S^\top\, D\theta\, Q_A\big)_{jk}^2\Big]. \qquad [20]$$
#
# In words: rotate every example's gradient into the basis, square, average. First the slow way: one matrix for each example and each
# of the ten possible labels, weighted by the model's own probability of that label.

# %%
from inflib import capture

Λ_slow = torch.zeros(8, 50)
p = model(X).softmax(-1).detach()  # (500, 10)
for c in range(10):
    gradients = capture(model, objective, X, torch.full_like(y, c))["hidden1"].matrices()  # (500, 8, 50)
    rotated = Q_S.T @ gradients @ Q_A
    Λ_slow += (p[:, c, None, None] * rotated**2).mean(0)
assert torch.allclose(Λ_slow.flatten(), truth, atol=1e-12), "Λ is the diagonal of UᵀGU: is a rotation transposed?"

# %% [markdown]
# The mean of squares equals the diagonal of $U^\top G_l U$ to twelve digits, and no 400 × 400 matrix was needed.
#
# ## The same without the matrices
#
# For a plain network $D\theta = g a^\top$ has rank one, and rotating it is rotating its two vectors:
# $Q_S^\top g a^\top Q_A = \tilde g \tilde a^\top$ with $\tilde g = Q_S^\top g$ and $\tilde a = Q_A^\top a$. Squaring a product of two
# numbers squares each. And since $a$ does not depend on the label, the ten labels, weighted by the model's probabilities $p_c$, can be added up
# first:
#
# $$\Lambda_{jk} = \frac1N\sum_n\Big(\sum_c p_c\,\tilde g_j^2\Big)\,\tilde a_k^2 .$$
#
# With the examples as rows, that is one matrix product.

# %%
G2 = torch.zeros(500, 8)  # Σ over labels of p_c g̃²
for c in range(10):
    pair = capture(model, objective, X, torch.full_like(y, c))["hidden1"]
    G2 += p[:, c, None] * (pair.g[:, 0] @ Q_S) ** 2
A2 = (pair.a[:, 0] @ Q_A) ** 2  # (500, 50)
Λ = G2.T @ A2 / 500
assert torch.allclose(Λ, Λ_slow, atol=1e-12), "rows are examples: rotate with g @ Q_S, which is (Q_Sᵀ g)ᵀ"

# %% [markdown]
# That is [`ekfac`](../inflib/kronecker.py): the moments, one `eigh` per factor ([`eigenbasis`](../inflib/ekfac.py)), and the matrix product
# above ([`corrected_eigenvalues`](../inflib/ekfac.py)). Eigenvectors are only fixed up to their sign. So we compare what does not
# depend on it: the eigenvalues, and the matrix.

# %%
from inflib import ekfac, kfac

ek, kf = ekfac(model, objective, train), kfac(model, objective, train)
assert torch.allclose(ek.eigenvalues["hidden1"], Λ, atol=1e-10), "the eigenvalues are not those derived above"
ours = U @ torch.diag(Λ.flatten()) @ U.T
assert torch.allclose(ek.to_dense()[:400, :400], ours, atol=1e-10), "same eigenvalues, another basis?"
ek

# %% [markdown]
# ## Why this diagonal and no other
#
# Which numbers $\Lambda'_{jk}$ make $U\,\mathrm{diag}(\Lambda')\,U^\top$ closest to $G_l$? An orthogonal $U$ keeps the Frobenius norm, so we may
# look in the basis. There the error splits into two parts that have nothing to do with each other:
#
# $$\lVert G_l - U\,\mathrm{diag}(\Lambda')\,U^\top\rVert_F^2 = \lVert U^\top G_l U - \mathrm{diag}(\Lambda')\rVert_F^2
# = \underbrace{\lVert U^\top G_l U \text{ off its diagonal}\rVert_F^2}_{\text{no } \Lambda' \text{ in it}} + \sum_{jk} \big(u_{jk}^\top G_l u_{jk} - \Lambda'_{jk}\big)^2.$$
#
# The second sum is zero exactly when $\Lambda'$ is the diagonal of $U^\top G_l U$, that is for $\Lambda' = \Lambda$. No other eigenvalues in this basis do
# better (George et al. 2018). It is Pythagoras: K-FAC's squared error is EK-FAC's plus the squared distance between
# their eigenvalues.


# %%
def error(matrix, exact=G_hidden):
    return (matrix - exact).norm() / exact.norm()


error_kfac, error_ekfac = error(torch.kron(S, A)), error(ours)
moved = (Λ - Λ_kfac).norm() / G_hidden.norm()
print(f"relative error: K-FAC {error_kfac:.3f}, EK-FAC {error_ekfac:.3f}; eigenvalues moved by {moved:.3f}")
assert abs(error_kfac**2 - error_ekfac**2 - moved**2) < 1e-10, "Pythagoras fails: G and Λ use different labels"
assert error_ekfac < error_kfac, "the best diagonal cannot be worse than another one"

# %% [markdown]
# The theorem is about this one norm. Whether it helps an *inverse*, and the scores made with it, is a question for measurement;
# we come to it below.
#
# One more fact is exact: the trace. Rotations keep it, so $\sum\Lambda = \mathrm{tr}\, G_l$. K-FAC's trace is
# whatever $\mathrm{tr}\,S \cdot \mathrm{tr}\,A$ happens to be. Below, each layer's trace over its size: the mean eigenvalue.

# %%
means = {name: C.mean_eigenvalues() for name, C in {"exact": G, "EK-FAC": ek, "K-FAC": kf}.items()}
for name, per_layer in means.items():
    print(f"{name:7}", {layer: f"{value:.4f}" for layer, value in per_layer.items()})
assert all(abs(means["EK-FAC"][k] - means["exact"][k]) < 1e-10 for k in G.layers), "a rotation keeps the trace"
assert abs(means["K-FAC"]["out"] / means["exact"]["out"] - 1) > 0.01, (
    "K-FAC's mean should be off by more than a per cent"
)

# %% [markdown]
# This is why every comparison below hands *the same damping numbers* to all methods. Damping is set as a multiple of the mean
# eigenvalue, and the methods disagree about that mean. With each at its own default we would compare dampings.
#
# ## The damped inverse
#
# Adding $\lambda I$ moves all eigenvalues by $\lambda$ and no eigenvector. So in the basis the inverse is a division, number by number:
#
# $$(G_l + \lambda I)^{-1} v \;\approx\; Q_S \Big[\big(Q_S^\top V Q_A\big) \oslash (\Lambda + \lambda)\Big] Q_A^\top. \qquad [21]$$
#
# $V$ is the vector as an 8 × 50 matrix, $\oslash$ divides entry by entry. Four small products stand in place of a 400 × 400 solve. A new
# $\lambda$ costs no new decomposition.

# %%
V = capture(model, objective, *ask[0])["hidden1"].matrices()[0]  # (8, 50): the gradient of a query's loss
λ = float(0.1 * Λ.mean())
x = Q_S @ ((Q_S.T @ V @ Q_A) / (Λ + λ)) @ Q_A.T
dense = torch.linalg.solve(ours + λ * torch.eye(400), V.flatten())
assert torch.allclose(x.flatten(), dense, atol=1e-8), "divide by Λ + λ, do not multiply; rotate back with Q_S · Q_Aᵀ"

# %% [markdown]
# [`Kronecker.solve`](../inflib/kronecker.py) does the same for stacks of vectors in all layers, with one $\lambda$ for each layer.

# %%
stack = {name: pair.matrices() for name, pair in capture(model, objective, *ask[0]).items()}  # (50, o, i) each
solved = ek.solve(stack, damping={"hidden1": λ, "out": λ})
assert torch.allclose(solved["hidden1"][0], x, atol=1e-8), "solve disagrees with [21]"

# %% [markdown]
# ## The ladder
#
# Now put everything in one row. From the Hessian down, each rung gives something up:
#
# | rung | what it gives up |
# |---|---|
# | H, the Hessian | nothing, but it may be indefinite |
# | G, Gauss-Newton | the curvature of the network itself (notebook 02): our reference |
# | block G | coupling between layers |
# | EK-FAC | off-diagonal entries in K-FAC's basis |
# | K-FAC | the right eigenvalues in that basis |
# | diagonal | every coupling between weights |
# | identity | the curvature altogether: gradient dot products |

# %%
from inflib import diagonal, hessian, identity


def rungs(model):
    """Every curvature of the ladder, from the Hessian to the identity."""
    exact = {"H": hessian, "G": gauss_newton, "block G": lambda *a: gauss_newton(*a, blocks=True)}
    approximate = {"EK-FAC": ekfac, "K-FAC": kfac, "diagonal": diagonal, "identity": identity}
    return {name: make(model, objective, train) for name, make in (exact | approximate).items()}


ladder = rungs(model)
print(list(ladder))
assert torch.equal(ladder["G"].to_dense(), G.to_dense()), "the same model and data, the same G"

# %% [markdown]
# Three questions for each rung, all against G: how far is the matrix (relative Frobenius error)? how far is the damped solve
# of a query's gradient (relative error)? and how well do the final scores of all 500 training examples correlate, query by
# query? The same $\lambda$ for all, taken from G's own blocks by `damping_of`.

# %%
import warnings

from inflib import IndefiniteWarning, influence


def quiet(function, *arguments):
    """A call whose warning about an indefinite H we expect here; notebook 02 looked at it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndefiniteWarning)
        return function(*arguments)


def correlation(scores, exact):
    """The mean over queries of Pearson's correlation across training examples."""
    pairs = zip(scores, exact, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean()


# %%
from inflib import damping_of
from inflib.curvature import flatten


def compare(model, ladder, multiple):
    """{rung: (matrix error, solve error, score correlation)} at damping multiple × mean eigenvalue of G's blocks."""
    same = damping_of(ladder["G"], multiple)  # {layer: λ} for every rung
    queries = {k: pair.matrices() for k, pair in capture(model, objective, *ask[0]).items()}
    found = {}
    for name, C in ladder.items():
        solved = flatten(quiet(C.solve, queries, same), ladder["G"].shapes)
        scores = quiet(influence, model, objective, train, ask, C, same)
        found[name] = (C.to_dense(), solved, scores)
    exact = found["G"]
    far = {k: [(v[i] - exact[i]).norm() / exact[i].norm() for i in (0, 1)] for k, v in found.items()}
    return {k: (*far[k], correlation(found[k][2], exact[2])) for k in found}


result = compare(model, ladder, 0.1)
for name, (matrix, solve, scores) in result.items():
    print(f"{name:9} matrix error {matrix:6.3f}   solve error {solve:6.3f}   score correlation {scores:5.2f}")
assert result["EK-FAC"][0] < result["K-FAC"][0], "EK-FAC is never further than K-FAC in this norm"
λs = torch.cat([torch.full((o * i,), damping_of(G, 0.1)[k]) for k, (o, i) in G.shapes.items()])  # (490,)
for name in ("H", "G"):
    left = torch.linalg.eigvalsh(ladder[name].to_dense() + λs.diag())
    print(f"{name} + λ: {int((left < 0).sum())} negative eigenvalues, the smallest in size {left.abs().min():.5f}")
    assert (left.min() < 0) == (name == "H"), "G + λI is positive definite, H + λI is not at this damping"

# %% [markdown]
# Read it column by column, for it holds a surprise in each.
#
# *The matrix.* H is the closest to G by far, and the ones below it lose step by step. (The identity's number only says that
# its scale is arbitrary.) Going from G to its blocks costs more than all that follows down to K-FAC.
#
# *The solve.* H, the closest matrix, has the **worst** inverse. It has an eigenvalue close to $-\lambda$, as the last two lines show, and dividing by
# almost zero is worse than any approximation. The matrix error tells little about what an inverse does.
#
# *The scores.* These are kinder: a correlation over examples forgives what is common to all. Even H comes out with 0.81, though its solves are the worst. EK-FAC keeps most of what
# block G has. The diagonal, 0.35, is no better than no curvature at all, 0.36: it is couplings between weights that count here.
#
# ## Several networks, several dampings
#
# Is this a property of one network, at one damping? Take four: ReLU, tanh, a deeper one, and no hidden layer at all. And take four
# dampings, from a hundredth to ten times the mean eigenvalue.

# %%
from torch import nn

networks = {
    "ReLU 49-8-10": model,
    "tanh 49-8-10": trained((49, 8, 10), activation=nn.Tanh),
    "deep 49-6-6-10": trained((49, 6, 6, 10)),
    "logistic 49-10": trained((49, 10)),
}
ladders = {name: rungs(network) for name, network in networks.items()}
multiples = (0.01, 0.1, 1.0, 10.0)
table = {(n, m): compare(networks[n], ladders[n], m) for n in networks for m in multiples}

# %%
for n in networks:
    print(f"\n{n:15} score correlation with G at damping")
    print(f"{'':15} " + "".join(f"{m:>7g}" for m in multiples))
    for rung in ("H", "block G", "EK-FAC", "K-FAC", "diagonal", "identity"):
        print(f"{rung:>15} " + "".join(f"{table[n, m][rung][2]:7.2f}" for m in multiples))
assert all(row["block G"][2] > row["identity"][2] for row in table.values()), "the blocks should beat no curvature"

# %% [markdown]
# The same numbers as a figure: one panel a damping, one line a network, the rungs from left to right. Look at how the
# lines fall from block G to the identity, where one rises again, and how much of the fall larger damping takes away.

# %%
figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharey=True)
names = ["block G", "EK-FAC", "K-FAC", "diagonal", "identity"]
for ax, m in zip(axes, multiples, strict=True):
    for n in networks:
        ax.plot(names, [float(table[n, m][rung][2]) for rung in names], marker="o", markersize=4, label=n)
    ax.set(title=f"λ = {m:g} · mean eigenvalue", ylim=(-0.1, 1.05))
    ax.tick_params(axis="x", rotation=60)
axes[0].set_ylabel("correlation with exact scores")
_ = axes[-1].legend(loc="lower left")
rises = [table[n, 10.0]["identity"][2] > table[n, 0.01]["identity"][2] for n in networks]
assert all(rises), "as λ grows, every method tends to the gradient dot product"

# %% [markdown]
# At the last step the lines of the two ReLU networks rise: the diagonal does them more harm than no curvature. The other two fall.
#
# With much damping all methods draw together: $(C+\lambda I)^{-1}$ tends to $I/\lambda$, whatever C is. So agreement at large damping is no
# praise of an approximation. With little damping the rungs lie far apart.
#
# Which step of the ladder costs most? Compare two: cutting the layers apart (G to block G), and giving a block its Kronecker form
# (block G to EK-FAC).

# %%
for n in networks:
    cut, form = (
        [float(table[n, m][upper][2] - table[n, m][lower][2]) for m in multiples]
        for upper, lower in (("G", "block G"), ("block G", "EK-FAC"))
    )
    larger = [f"{m:g}" for m, a, b in zip(multiples, cut, form, strict=True) if b > a]
    print(f"{n:15} the Kronecker form costs more than the cut at damping {', '.join(larger)}")
    assert ("1" in larger) == (not n.startswith("deep")), "which network is the exception at damping 1?"
    assert ("10" in larger) == n.startswith("logistic"), "at damping 10 it is the cut, where there is one"

# %% [markdown]
# At small damping the Kronecker form costs more. At damping 10 the cut costs as much or more in all three networks that have layers to cut, and in the
# deep one already at 1. (The logistic network has one layer, so nothing is cut.)
#
# Mind what this table is. It has sixteen cells, but they are not sixteen trials. Four networks were trained, once each, on the same 500 digits, and
# four dampings of one network rise and fall together. Counting cells would pretend to a certainty that is not there.
#
# ## Nine trials
#
# A trial is a training of its own. Our 4,500 digits are nine times five hundred. So train nine networks, each on
# digits of its own and from a seed of its own, and ask each about the same fifty queries. The queries and the recipe are shared: what comes out holds for
# these. (The first trial has the digits and the seed of the networks above, on which its two settings were picked.)
#
# Beside the correlation take a measure of *ranking*. Of the ten examples that exact G ranks highest, how many are among the ten highest
# of an approximation? Chance would find 10 · 10 / 500 = 0.2.


# %%
def in_common(scores, exact, k=10):
    """The mean over queries of how many of the k highest scores are among the exact ones' k highest."""
    top, best = (s.argsort(dim=1, descending=True, stable=True)[:, :k] for s in (scores, exact))
    return (top[:, :, None] == best[:, None, :]).sum((1, 2)).double().mean()


def trial(k, sizes, multiple):
    """{rung: (correlation, of 10 in common)} for a network with seed k, trained on the k-th five hundred digits."""
    part = digits.train[500 * k : 500 * (k + 1)]
    data = [(pooled(part), part.labels)]
    network = mlp(sizes, seed=k, dtype=torch.float64)
    recipe = dict(epochs=50, batch_size=50, lr=3e-3, weight_decay=5e-3, seed=k, progress=False)
    fit(network, objective, *data[0], **recipe)
    exact = gauss_newton(network, objective, data)
    below = {"EK-FAC": ekfac, "K-FAC": kfac, "diagonal": diagonal, "identity": identity}
    found = {"G": exact, "block G": gauss_newton(network, objective, data, blocks=True)}
    found |= {name: make(network, objective, data) for name, make in below.items()}
    same = damping_of(exact, multiple)
    scores = {name: influence(network, objective, data, ask, C, same) for name, C in found.items()}
    return {name: (correlation(s, scores["G"]), in_common(s, scores["G"])) for name, s in scores.items()}


# %% [markdown]
# Nine differences between two rungs are nine independent numbers. Their median is our estimate. The interval from the second smallest to the
# second largest holds the true median with a probability of 96%, whatever the distribution (exercise 4 asks why).

# %%
kinds = {"ReLU 49-8-10, damping 0.1": ((49, 8, 10), 0.1), "deep 49-6-6-10, damping 1": ((49, 6, 6, 10), 1.0)}
trials = {kind: [trial(k, *how) for k in range(9)] for kind, how in kinds.items()}
steps_down = (("G", "block G"), ("block G", "EK-FAC"), ("EK-FAC", "K-FAC"), ("diagonal", "identity"))


def differences(kind, upper, lower, i):
    """What is lost from one rung to a lower one in each trial, sorted, (9,); i = 0: correlation, 1: ranking."""
    return torch.stack([one[upper][i] - one[lower][i] for one in trials[kind]]).sort().values


# %%
for kind in trials:
    print(f"{kind}: lost in correlation, and of the ten highest; median [96% interval]")
    for upper, lower in steps_down:
        lost = [differences(kind, upper, lower, i) for i in (0, 1)]
        cells = [f"{d[4]:+6.3f} [{d[1]:+.3f}, {d[7]:+.3f}]" for d in lost]
        print(f"    from {upper:9} to {lower:9}", "   ".join(cells))
relu, deep = ([differences(kind, *step, 0) for step in steps_down] for kind in trials)
assert relu[1][0] > relu[0][8], "for the two layers the Kronecker form should cost more than the cut, in every trial"
assert deep[1][8] < deep[0][0], "for the deep network at damping 1 it should be the other way round"

# %% [markdown]
# Now there is something to say, and it depends on the measure.
#
# - *Kronecker form or cut?* With two layers at damping 0.1 the form costs more correlation, in all nine trials. With three layers at
#   damping 1 it costs less, again in all nine. Among the ten highest the *cut* has the larger median in both. So for whoever reads the top
#   of a list, cutting layers apart is no smaller matter.
# - *Diagonal or nothing?* The last line is negative: for these two ReLU networks, by correlation, the diagonal is **worse** than no curvature. An approximation
#   that ignores couplings can do harm. (It need not: in the table above the tanh network and the logistic one have it the other way round at small damping.)
#
# ## Does the correction help?
#
# In the matrix, yes: that is a theorem. In the scores it is the third line of both tables. Look at all nine trials behind it.

# %%
for kind in trials:
    for i, what in enumerate(("correlation", "of the ten highest")):
        gain = differences(kind, "EK-FAC", "K-FAC", i)
        better = int((gain > 0).sum())
        print(f"{kind:26} {what:18} EK-FAC better in {better} of 9, by {gain.min():+.3f} to {gain.max():+.3f}")
pairs = [(row["EK-FAC"], row["K-FAC"]) for row in table.values()]
assert all(e[0] < k[0] for e, k in pairs), "a theorem fails: do Λ and G use the same labels?"

# %% [markdown]
# With two layers the two correlations differ by less than a hundredth, now one way, now the other. With three layers at damping 1 EK-FAC
# correlates better in all nine trials, by six thousandths at most. On such networks the correction is cheap and harmless rather than a leap. What it
# surely buys is the right trace, so that "0.1 times the mean eigenvalue" means what it says.
#
# ## Climbing back up
#
# The Kronecker structure lost something. Can it be won back? We can multiply the exact $G$ with a vector without ever building it, at the
# price of a few gradients. So we can *solve* $(G+\lambda I)\,\Delta = v$ by steps, and start with EK-FAC's answer.
#
# Solving is minimising $\tfrac12 \Delta^\top (G+\lambda I)\, \Delta - \Delta^\top v$, whose negative gradient is the residual $r = v - (G+\lambda I)\,\Delta$.
# Write $\hat P$ for EK-FAC's damped inverse. Conjugate gradients walk along $\hat P r$, made conjugate to the directions before. Each step
# goes to the minimum along its direction $d$, over a length of $r^\top \hat P r \,/\, d^\top (G+\lambda I)\, d$.

# %%
damping = damping_of(G, 0.1)  # {layer: λ}
v = {k: p.matrices() for k, p in capture(model, objective, *ask[0], measurement="log_likelihood").items()}
on_diagonal = torch.cat([torch.full((o * i,), damping[k]) for k, (o, i) in G.shapes.items()]).diag()
damped, P_hat = G.to_dense() + on_diagonal, torch.linalg.inv(ek.to_dense() + on_diagonal)  # (490, 490)


def climb(v, steps):
    """Conjugate gradients for one vector (D,), preconditioned by EK-FAC: the textbook's five lines a step."""
    change, r = torch.zeros_like(v), v
    turned = d = P_hat @ r
    for _ in range(steps):
        length = (r @ turned) / (d @ damped @ d)
        change, r_next = change + length * d, r - length * (damped @ d)
        turned_next = P_hat @ r_next
        d = turned_next + (r_next @ turned_next) / (r @ turned) * d
        r, turned = r_next, turned_next
    return change


# %% [markdown]
# [`conjugate_gradients`](../inflib/solvers.py) does this for all queries at once, with any curvature as the preconditioner.
# [`refine`](../inflib/implicit.py) wraps it as a curvature whose `matvec` is the exact G by products with the network, never a matrix.
# Here we may check it against the dense one.

# %%
from inflib import refine
from inflib.solvers import conjugate_gradients

v_flat = flatten(v, G.shapes)  # (50, 490)
three = flatten(conjugate_gradients(G, v, damping, preconditioner=ek, steps=3).x, G.shapes)
assert torch.allclose(three[0], climb(v_flat[0], 3), atol=1e-8), "is EK-FAC damped with the same λ as G?"
dial = refine(ek, model, objective, train, steps=3)
by_products = flatten(dial.solve(v, damping), G.shapes)
assert torch.allclose(by_products, three, atol=1e-8), "products with G disagree with the matrix"

# %% [markdown]
# Two ends of the dial are known. No step is EK-FAC's own answer, and one step is that answer times one number, which cannot change a
# correlation. Many steps are the exact solve. In between, look at how steep the first steps are, and compare with plain conjugate
# gradients, which start with the bare gradient.

# %%
gradients = capture(model, objective, X, y)
pulls = -flatten({k: pair.matrices() for k, pair in gradients.items()}, G.shapes)  # (500, 490) −∇ℓ of every example
exact_scores = torch.linalg.solve(damped, v_flat.T).T @ pulls.T  # (50, 500)


def walked(steps, preconditioner):
    return flatten(conjugate_gradients(G, v, damping, preconditioner=preconditioner, steps=steps).x, G.shapes) @ pulls.T


steps = (1, 2, 3, 5, 10, 20)
starts = {"from EK-FAC": ek, "plain": None}
scores = {name: [walked(k, start) for k in steps] for name, start in starts.items()}
walks = {name: [float(correlation(s, exact_scores)) for s in some] for name, some in scores.items()}
print(f"{'steps':30}", "".join(f"{k:8}" for k in steps))
for name, some in scores.items():
    print(f"{name:11} correlation       ", "".join(f"{value:8.3f}" for value in walks[name]))
    print(f"{name:11} of the ten highest", "".join(f"{in_common(s, exact_scores):8.1f}" for s in some))
assert abs(walks["from EK-FAC"][0] - float(result["EK-FAC"][2])) < 1e-6, (
    "one step is EK-FAC times a number for each query"
)

# %%
figure, ax = plt.subplots()
for name, values in walks.items():
    ax.plot(steps, values, marker="o", label=name)
ax.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--", label="exact G")
ax.axhline(float(result["block G"][2]), color=plots.GREEN, linewidth=0.8, linestyle=":", label="exact blocks")
ax.set(xscale="log", xticks=steps, xticklabels=steps, xlabel="conjugate-gradient steps (products with G)")
ax.set(ylabel="correlation with exact scores", ylim=(0, 1.05))
_ = ax.legend(loc="lower right")
assert all(a > b for a, b in zip(walks["from EK-FAC"], walks["plain"], strict=True)), (
    "EK-FAC should give the better start"
)
assert walks["from EK-FAC"][2] > result["block G"][2], "three steps should pass the exact blocks"

# %% [markdown]
# Two steps nearly reach the exact blocks (the dotted line) and three pass them. The products with G know about the coupling between layers, which every rung
# below G had thrown away. Of the ten highest scores EK-FAC has seven, three steps have nine. The plain walk gets there too, later.
#
# That was one network at one damping. But it is how to ask "is EK-FAC good enough here?" anywhere: climb a few steps for some queries, and see how many of the
# ten highest change.
#
# ## Three cautions
#
# *A truncated walk is not linear.* The length of each step depends on $v$. So the walk of a sum is not the sum of the walks. And
# solving the query is not the same as solving the training example. EK-FAC's own solve, and a walk to the end, are linear. So with few steps
# solve the query side only.

# %%
from itertools import pairwise

from inflib.curvature import unflatten


def of_rows(rows, steps):
    """The walk from EK-FAC for flat vectors (K, 490)."""
    stack = unflatten(rows, G.shapes)
    return flatten(conjugate_gradients(G, stack, damping, preconditioner=ek, steps=steps).x, G.shapes)


for steps_taken in (1, 3, 300):
    both = of_rows(v_flat[:1] + v_flat[1:2], steps_taken)
    apart = of_rows(v_flat[:2], steps_taken).sum(0)
    other_side = (v_flat[:50] * of_rows(pulls[:50], steps_taken)).sum(1)  # the training example solved
    one_side = (of_rows(v_flat[:50], steps_taken) * pulls[:50]).sum(1)
    off = (both - apart).norm() / apart.norm(), (other_side - one_side).norm() / one_side.norm()
    print(f"{steps_taken:3} steps: sum against parts {off[0]:.3f}, other side solved {off[1]:.3f} (relative)")
    assert (max(off) < 1e-3) == (steps_taken == 300), "only the walk to the end is linear"

# %% [markdown]
# *The residual is not the error.* Each step lowers the quantity that is minimised. The residual $\lVert r\rVert$ may rise meanwhile, for it weighs stiff
# directions more. `solve_with_residual` returns it, as a fraction of
# $\lVert v\rVert$.
#
# *Low damping takes more steps.* Look for the residual of the first step, and for how the number of steps grows.

# %%
solution = dial.solve_with_residual(v, damping)
by_hand = (v_flat - three @ damped).norm(dim=1) / v_flat.norm(dim=1)
assert torch.allclose(solution.residual, by_hand, atol=1e-6), "the residual is ‖v − (G + λ)Δ‖ / ‖v‖"


# %%
def at(multiple, steps):
    """After these steps at this damping: residual, and each query's correlation with the exact scores (50,)."""
    lower = damping_of(G, multiple)
    solved = conjugate_gradients(G, v, lower, preconditioner=ek, steps=steps)
    exact, came = (flatten(h, G.shapes) @ pulls.T for h in (G.solve(v, lower), solved.x))
    each = torch.stack([correlation(one[None], other[None]) for one, other in zip(came, exact, strict=True)])
    return float(solved.residual.mean()), each


for multiple in (0.1, 0.01, 0.001):
    found = [at(multiple, k) for k in steps[:5]]
    falls = sum(int((b[1] < a[1] - 1e-3).sum()) for a, b in pairwise(found))
    print(f"damping {multiple:5g}: residual", " ".join(f"{r:.2f}" for r, _ in found), end="; ")
    print("correlation", " ".join(f"{each.mean():.2f}" for _, each in found), f"; falls {falls} of 200 times")
    assert (found[0][0] > 1) == (multiple < 0.1), "at low damping the first step should leave more than no step at all"
    assert all(a[1].mean() < b[1].mean() for a, b in pairwise(found)), "on average it should climb"

# %% [markdown]
# At a hundredth of the mean eigenvalue and below, the first step leaves a larger residual than no answer at all, which leaves 1. Its scores are
# far better than none all the same. On the average over queries each further step helps, at every damping tried. The counts say how often a
# single query got worse from one column to the next (1, 2, 3, 5, 10 steps). And at a thousandth ten steps reach what three reach at a tenth.
#
# ## The ladder, to play with
#
# All of it at once: choose a network, one layer or all, and move the damping. The matrices stay as they are, for damping belongs to
# the solve; the table and the scatter move.
#
# It opens at one layer of the tanh network, where H is indefinite. With one layer chosen, its matrix is compared with that layer's block, and the solve with that layer's *piece* of
# the whole solve.
#
# 1. **Push the damping up** and watch H turn definite.
# 2. **Push it further** and watch even the identity's points gather on the line.
# 3. **Choose all layers, then one.** Which part of block G's loss is gone with one, and why not all?

# %%
from inflib.widgets import Ladder, Rungs


def rungs_of(network, curvatures):
    """What the widget needs of a network: curvatures, the queries' gradients, the training gradients."""
    queries = capture(network, objective, *ask[0], measurement="log_likelihood")
    training = capture(network, objective, X, y)
    stacks = ({k: p.matrices() for k, p in pairs.items()} for pairs in (queries, training))
    return Rungs(curvatures, *stacks)


Ladder({name: rungs_of(network, ladders[name]) for name, network in networks.items()})

# %% [markdown]
# ## EK-FAC on one page
#
# Five notebooks, one method. Here it is whole: from data to score in plain PyTorch, without `inflib`. Read it line by line; there is nothing
# else. First the data and a network.

# %%
import numpy as np

with np.load("../data/mnist_5k.npz") as file:
    pixels = torch.tensor(file["images"] / 127.5 - 1)  # (5000, 28, 28)
    labels, held_out = torch.tensor(file["labels"]).long(), torch.tensor(file["split"] == 1)
inputs = F.avg_pool2d(pixels, 4).flatten(1)  # (5000, 49)
x_n, y_n = inputs[~held_out][:500], labels[~held_out][:500]  # to train on
x_q, y_q = inputs[held_out][::10], labels[held_out][::10]  # to ask about
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(49, 8), nn.ReLU(), nn.Linear(8, 10))
adam = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=5e-3)
for _ in range(500):
    adam.zero_grad()
    F.cross_entropy(net(x_n), y_n).backward()
    adam.step()
print(
    f"loss {F.cross_entropy(net(x_n), y_n).item():.3f}, of the new digits {F.cross_entropy(net(x_q), y_q).item():.3f}"
)

# %% [markdown]
# Then $a$ and $g$ of every layer (notebook 03), the factors and their eigenvectors (04), and the corrected eigenvalues [20].


# %%
def pairs_of(x, y):
    """(a, g) of every linear layer, (B, i) and (B, o), for the loss with labels y."""
    a, z = [], []
    for module in net:
        linear = isinstance(module, nn.Linear)
        a += [F.pad(x, (0, 1), value=1.0).detach()] if linear else []  # its input, and a 1 for the bias
        x = module(x)
        z += [x] if linear else []  # its output
    return list(zip(a, torch.autograd.grad(F.cross_entropy(x, y, reduction="sum"), z), strict=True))


p_n = net(x_n).softmax(1).detach()  # (500, 10): how likely the model holds each label
by_label = [(p_n[:, c, None], pairs_of(x_n, torch.full_like(y_n, c))) for c in range(10)]
basis, eigenvalues = [], []
for k in range(2):  # the layers
    a = by_label[0][1][k][0]  # does not depend on the label
    A_k, S_k = a.T @ a / 500, sum((p_c * ag[k][1]).T @ ag[k][1] for p_c, ag in by_label) / 500
    Q_Ak, Q_Sk = torch.linalg.eigh(A_k)[1], torch.linalg.eigh(S_k)[1]
    g_squared = sum(p_c * (ag[k][1] @ Q_Sk) ** 2 for p_c, ag in by_label)  # (500, o)
    basis.append((Q_Sk, Q_Ak))
    eigenvalues.append(g_squared.T @ (a @ Q_Ak) ** 2 / 500)  # (o, i)

# %% [markdown]
# Last the score, $\nabla m^\top(C+\lambda I)^{-1}(-\nabla\ell_n)$ with $m = \log p$: turn the query's gradient into the basis, divide, turn back [21], and
# multiply with every training gradient. Divided by $N$ it is the example's **contribution**: what the query's log-likelihood is expected to lose if the
# example is taken away.

# %%
score = 0
for (a, g), (a_q, g_q), (Q_Sk, Q_Ak), Λ_k in zip(
    pairs_of(x_n, y_n), pairs_of(x_q, y_q), basis, eigenvalues, strict=True
):
    asks = -g_q[:, :, None] * a_q[:, None, :]  # (50, o, i): ∇m = −∇ℓ of the query
    solved_k = Q_Sk @ ((Q_Sk.T @ asks @ Q_Ak) / (Λ_k + 0.1 * Λ_k.mean())) @ Q_Ak.T
    score = score - torch.einsum("qoi,no,ni->qn", solved_k, g, a)  # (50, 500)
contributions = score / 500

# %% [markdown]
# Is it what `inflib` computes?

# %%
curvature = ekfac(net, CrossEntropy(), [(x_n, y_n)])
same = influence(net, CrossEntropy(), [(x_n, y_n)], [(x_q, y_q)], curvature)
print(f"equal to inflib's scores to ten digits: {torch.allclose(score, same, rtol=1e-10)}")
assert torch.allclose(score, same, rtol=1e-10, atol=1e-10 * same.abs().max().item()), "a step differs from inflib's"

# %% [markdown]
# That is all of EK-FAC. What `inflib` adds is other layers, sequences, memory limits, and errors that say what is wrong. One answer as a picture:
# the first query, its five strongest proponents, its five strongest opponents, each with its label and its contribution in nats, of which the order is to be trusted and not the size.

# %%
order = contributions[0].argsort(descending=True, stable=True)
chosen = [*order[:5].tolist(), *order.flip(0)[:5].tolist()]
digits_n, digit_q = pixels[~held_out][:500], pixels[held_out][0]
captions = [f"query: {y_q[0]}", *(f"{y_n[n]}: {contributions[0, n]:+.2f}" for n in chosen)]
_ = plots.images([digit_q, *digits_n[chosen]], captions, columns=11)
print(*captions, sep="   ")
assert contributions[0, chosen[:5]].min() > 0 > contributions[0, chosen[5:]].max(), "proponents are positive"

# %% [markdown]
# ## Summary
#
# EK-FAC keeps K-FAC's eigenvectors and measures the eigenvalues $\Lambda = \mathbb E[(Q_S^\top D\theta\, Q_A)^2]$ afresh, which
# costs one more pass over the data. It gives the closest matrix with those eigenvectors, and the exact trace. The damped inverse
# stays two rotations and a division, so damping can be moved without refitting.
#
# Whether the Kronecker form or the cut between layers costs more depends on the network, the damping and the measure. Keeping the diagonal
# alone is worse than either, and for two kinds of ReLU network it correlates worse than nothing. EK-FAC's and K-FAC's correlations with the exact scores differed by less than a
# hundredth in the eighteen trials, and by up to two in four networks at other dampings. A few
# preconditioned conjugate-gradient steps walk back up to the exact answer, and tell whether EK-FAC was good enough.
#
# Next, in notebook 06: what changes when an example is a sequence.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. The damped inverse by hand (easy, 10 minutes)
#
# Write `solve_out(V, λ)`: [21] for the layer `out`, from `ek.Q_S`, `ek.Q_A` and `ek.eigenvalues`, for one matrix $V$ of shape (10, 9).
# The check knows four ways to get it wrong, none of which raises an error by itself.


# %% jupyter={"source_hidden": true}
@exercise
def check_solve_out(answer):
    S_, A_, Λ_ = ek.Q_S["out"], ek.Q_A["out"], ek.eigenvalues["out"]
    V, damp = v["out"][0], damping["out"]
    came, truth = answer(V, damp), ek.solve(v, damping)["out"][0]
    transposed = S_.T @ ((S_ @ V @ A_.T) / (Λ_ + damp)) @ A_
    assert not torch.allclose(came, transposed), "transposed: into the basis it is Q_Sᵀ V Q_A, out of it Q_S · Q_Aᵀ"
    assert not torch.allclose(came, S_ @ ((S_.T @ V @ A_) * (Λ_ + damp)) @ A_.T), "that multiplies; an inverse divides"
    assert not torch.allclose(came, S_ @ ((S_.T @ V @ A_) / Λ_ + damp) @ A_.T), "λ is added to Λ, not to the quotient"
    assert not torch.allclose(came, (S_.T @ V @ A_) / (Λ_ + damp)), "still in the basis: rotate back"
    assert torch.allclose(came, truth, atol=1e-10), "another mistake: compare with ek.solve step by step"
    return "right: and the transposed rotation gives another matrix of the same shape, with no error message"


# %%
def solve_out(V, λ):
    """[21] for the layer out: V (10, 9) and a number to (10, 9)."""
    return ...  # your answer


check_solve_out(solve_out)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Transposed matrices are orthogonal too: shapes fit, lengths are kept, nothing is infinite. Only a comparison with a dense solve, or
# a non-symmetric $Q$ in a test of $\Lambda$, notices.
#
# ```python
# def solve_out(V, λ):
#     Q_S, Q_A, Λ = ek.Q_S["out"], ek.Q_A["out"], ek.eigenvalues["out"]
#     return Q_S @ ((Q_S.T @ V @ Q_A) / (Λ + λ)) @ Q_A.T
#
#
# check_solve_out(solve_out)
# ```
# </details>


# %% [markdown]
# ### 2. One damping for all layers (medium, 15 minutes)
#
# Suppose a program damps every layer by the λ of `hidden1`. Write `unnoticed()`, which compares its EK-FAC scores with the right ones in two numbers:
#
# - the mean correlation over queries of the *total* scores;
# - the relative size $\lVert\text{difference}\rVert / \lVert\text{right}\rVert$ of the error in the scores of the layer `out` alone.
#
# `influence(..., keep=("layer",))` keeps layers apart, in the order of `ek.layers`. Which of the two would make a good test?


# %% jupyter={"source_hidden": true}
@exercise
def check_unnoticed(answer):
    total, out = (float(number) for number in answer())
    assert out > 1e-6, "no error in out: are both dampings that of hidden1, or both right?"
    assert total > 0.95, f"total {total:.2f} should look fine: did hidden1 get another damping as well?"
    assert 0.05 < out < 1, f"relative error {out:.2f}: is it measured in out, the last of the layers?"
    return f"right: the total correlates to {total:.3f}, and the layer out alone is wrong by {out:.0%}"


# %%
def unnoticed():
    """Two numbers: the totals' correlation, and the relative error in the layer out."""
    return ...  # your answer


check_unnoticed(unnoticed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The total hides the mistake behind the layer that was right; a layer's own share shows it at once.
#
# ```python
# def unnoticed():
#     shared = dict.fromkeys(damping, damping["hidden1"])
#     good, bad = (influence(model, objective, train, ask, ek, d, keep=("layer",)) for d in (damping, shared))  # (50, 500, 2)
#     return correlation(bad.sum(-1), good.sum(-1)), (bad - good)[..., 1].norm() / good[..., 1].norm()
#
#
# check_unnoticed(unnoticed)
# ```
# </details>


# %% [markdown]
# ### 3. Another basis (harder, 20 minutes)
#
# The optimality of Λ holds for *any* orthogonal $U$. Write `best_in(U)`: the matrix closest to `G_hidden` among all with the
# eigenvectors in the columns of $U$. The check tries the identity as the basis, K-FAC's basis, and a random one. Before you run it:
# which basis would make the error zero, and what would it cost?


# %% jupyter={"source_hidden": true}
@exercise
def check_best_in(answer):
    random = torch.linalg.qr(torch.randn(400, 400, generator=torch.Generator().manual_seed(0)))[0]
    found = {}
    for kind, basis in {"identity": torch.eye(400), "random": random, "K-FAC's": U}.items():
        came = answer(basis)
        inside = basis.T @ came @ basis
        assert (inside - torch.diag(inside.diagonal())).norm() < 1e-8, "its eigenvectors are not U's columns"
        assert kind != "K-FAC's" or not torch.allclose(inside.diagonal(), Λ_kfac.flatten()), "those are K-FAC's values"
        assert torch.allclose(inside, torch.diag((basis.T @ G_hidden @ basis).diagonal()), atol=1e-10), "best is uᵀGu"
        found[kind] = f"{error(came):.3f}"
    return f"right: relative errors {found}, the first of them inflib.diagonal's"


# %%
def best_in(U):
    """The best matrix with eigenvectors U, (400, 400) to (400, 400)."""
    return ...  # your answer


check_best_in(best_in)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The best diagonal is always that of $U^\top G U$. In the identity basis it is `inflib.diagonal`. The error is zero in the
# basis of G's own eigenvectors, which is what an exact eigendecomposition of a $D \times D$ matrix would have to find.
#
# ```python
# def best_in(U):
#     return U @ torch.diag((U.T @ G_hidden @ U).diagonal()) @ U.T
#
#
# check_best_in(best_in)
# ```
# </details>


# %% [markdown]
# ### 4. An interval from nine numbers (easy, 10 minutes, pencil and paper)
#
# Nine independent trials give nine numbers. Each lies above the true median with probability ½. What is the probability that the true median lies
# between the second smallest and the second largest of them? It does not if fewer than two of the nine lie on one side.


# %% jupyter={"source_hidden": true}
@exercise
def check_covered(answer):
    assert abs(answer - (1 - 10 / 2**9)) > 1e-3, "that is one side only: too few may lie above, or below"
    assert abs(answer - (1 - 2 / 2**9)) > 1e-3, "that is the range from the smallest to the largest"
    assert abs(answer - (1 - 20 / 2**9)) < 1e-3, "count the ways in which none or one of nine lies above: 1 + 9 of 2⁹"
    above = torch.rand(100_000, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    drawn = ((above.sum(1) >= 2) & (above.sum(1) <= 7)).double().mean()
    return f"right: {answer:.3f}, and {drawn:.2f} in a hundred thousand draws"


# %%
covered = ...  # your number

check_covered(covered)

# %% [markdown]
# <details><summary>Solution</summary>
#
# None or one of nine lies above the median in $1 + 9$ of $2^9 = 512$ equally likely patterns, none or one below in as many. So the interval misses with
# probability 20/512, and holds with 0.961. Nothing was assumed of the distribution but independence.
#
# ```python
# covered = 1 - 20 / 512
# check_covered(covered)
# ```
# </details>

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent 2018, *Fast Approximate Natural Gradient Descent in a
#   Kronecker-factored Eigenbasis*: the correction and its optimality.
# - J. Martens, R. Grosse 2015, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*.
# - M. Hestenes, E. Stiefel 1952, *Methods of Conjugate Gradients for Solving Linear Systems*.
# - F. Dangel, B. Mucsányi, T. Weber, R. Eschenhagen 2025, *Kronecker-factored Approximate Curvature (KFAC) From Scratch*.
