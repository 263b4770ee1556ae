# %% [markdown]
# # 05 · What does the eigenvalue correction buy?
#
# **The question.** Notebook 04 replaced each layer's block of the Gauss-Newton Hessian by a Kronecker product,
# $G_\ell \approx S \otimes A$, which two small eigenproblems invert. Its eigen*vectors* come for the price of two small
# matrices; its eigen*values* are forced to be products $\lambda_S \lambda_A$. What if we keep the vectors, and measure the
# values afresh? That is EK-FAC, the approximation this course is named after, and the last step of the derivation. How much
# better is it: as a matrix, as an inverse, and in the scores that we want?
#
# **What you need to know.** Notebook 04: $A$, $S$, the two assumptions of K-FAC, damping. Eigendecompositions, and that an
# orthogonal change of basis keeps the Frobenius norm. Numbers in brackets are the equations of Grosse et al. 2023.
#
# **Time.** About 45 minutes to read; it runs in less than a minute on two CPU cores.

# %%
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt

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
# Diagonalise the two factors: $A = Q_A \Lambda_A Q_A^\top$ and $S = Q_S \Lambda_S Q_S^\top$. Because
# $(M_1 \otimes M_2)(M_3 \otimes M_4) = M_1 M_3 \otimes M_2 M_4$, their Kronecker product is then diagonal as well:
#
# $$S \otimes A = (Q_S \otimes Q_A)\,(\Lambda_S \otimes \Lambda_A)\,(Q_S \otimes Q_A)^\top. \qquad [18]$$
#
# The columns of $U = Q_S \otimes Q_A$ are K-FAC's eigenvectors: 400 vectors of length 400, kept as an 8 × 8 and a 50 × 50
# matrix. We build both factors from `inflib`'s sums of $a a^\top$ and $g g^\top$ and look at nothing else yet.

# %%
from inflib.kfac import second_moments

moments = second_moments(model, objective, train)
A, S = moments.A("hidden1"), moments.S("hidden1")  # (50, 50), (8, 8)
λ_A, Q_A = torch.linalg.eigh(A)
λ_S, Q_S = torch.linalg.eigh(S)
U = torch.kron(Q_S, Q_A)  # (400, 400)
Λ_kfac = torch.outer(λ_S, λ_A)  # (8, 50): one eigenvalue for each pair (j, k)
rebuilt = U @ torch.diag(Λ_kfac.flatten()) @ U.T
assert torch.allclose(rebuilt, torch.kron(S, A), atol=1e-12), (
    "row-major: S comes first, and Q's columns are eigenvectors"
)

# %% [markdown]
# ## Are those eigenvalues true?
#
# Write the exact block in K-FAC's basis, $U^\top G_\ell U$. If K-FAC were exact, this matrix would be diagonal, with
# $\lambda_S\lambda_A$ along its diagonal. There are thus two ways to be wrong: entries *off* the diagonal, which no choice of
# eigenvalues can mend, and a diagonal that *differs*, which can be mended at once. In the left picture look for what stands off
# the diagonal, in the right one for how far the points lie from the line at 1.

# %%
in_basis = U.T @ G_hidden @ U
truth = in_basis.diagonal()  # what U's columns really see: uᵀ G u
order = truth.argsort(descending=True)[:150]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
plots.matrix(left, in_basis[order[:50]][:, order[:50]].abs().sqrt(), "√|UᵀGU|, the 50 largest", limit=1)
ratio = truth[order] / Λ_kfac.flatten()[order]
right.axhline(1, color=plots.GREY, linewidth=0.8, linestyle="--")
right.scatter(Λ_kfac.flatten()[order], ratio, s=10)
right.set(xscale="log", xlabel="K-FAC's eigenvalue λ_S λ_A", ylabel="exact uᵀGu / K-FAC's", title="the 150 largest")
print(f"exact / K-FAC runs from {ratio.min():.2f} to {ratio.max():.2f}")
assert ratio.min() < 0.8, "K-FAC should overstate some large eigenvalues: is G built with the same labels?"
assert (order[:5] % 50 == 49).all() and (Q_A[:-1, -1] @ F.normalize(X.mean(0), dim=0)).abs() > 0.9, "not the mean image"

# %% [markdown]
# The diagonal stands out, so the eigenvectors are useful, but it is not alone: the few largest are coupled to all the others.
# On the right, K-FAC's eigenvalues are right in order of magnitude and wrong in detail. The handful far to the right
# (all made with $A$'s top eigenvector, which is nearly the mean image) are good to a few per cent; the many behind them are off by tens of per cent, some up, some down. The reason is
# the second assumption of notebook 04: a product $\lambda_S\lambda_A$ would be right if $g$ and $a$ were independent.
#
# ## The correction
#
# So measure them. The number that eigenvector $u_{jk}$ should have is $u_{jk}^\top G_\ell\, u_{jk}$, and $G_\ell$ is the mean of $D\theta
# D\theta^\top$ over examples with labels drawn from the model. The vector $u_{jk}$ is column $j$ of $Q_S$ times column $k$ of
# $Q_A$, and multiplying it with a flattened gradient matrix picks out one entry of the rotated matrix:
#
# $$\Lambda_{jk} = u_{jk}^\top\,\mathbb E[D\theta D\theta^\top]\,u_{jk} = \mathbb E\big[(u_{jk}^\top D\theta)^2\big]
# = \mathbb E\Big[\big(Q_S^\top\, D\theta\, Q_A\big)_{jk}^2\Big]. \qquad [20]$$
#
# In words: rotate every example's gradient into the basis, square, average. First the slow way, one matrix for each example and
# each of the ten possible labels, each weighted by the model's own probability of that label.

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
# The mean of squares equals the diagonal of $U^\top G_\ell U$ to twelve digits, and no 400 × 400 matrix was needed.
#
# ## The same without the matrices
#
# For a plain network $D\theta = g a^\top$ has rank one, and rotating it is rotating its two vectors:
# $Q_S^\top g a^\top Q_A = \tilde g \tilde a^\top$ with $\tilde g = Q_S^\top g$ and $\tilde a = Q_A^\top a$. Squaring a product of two
# numbers squares each, so the mean over the examples is one matrix product, $\Lambda = \frac1N (\tilde G^2)^\top \tilde A^2$. And since $a$ does not
# depend on the label, the ten labels can be added up before it.

# %%
G2 = torch.zeros(500, 8)  # Σ over labels of p_c g̃²
for c in range(10):
    pair = capture(model, objective, X, torch.full_like(y, c))["hidden1"]
    G2 += p[:, c, None] * (pair.g[:, 0] @ Q_S) ** 2
A2 = (pair.a[:, 0] @ Q_A) ** 2  # (500, 50)
Λ = G2.T @ A2 / 500
assert torch.allclose(Λ, Λ_slow, atol=1e-12), "rows are examples: rotate with g @ Q_S, which is (Q_Sᵀ g)ᵀ"

# %% [markdown]
# That is `inflib.ekfac`: `second_moments`, one `eigh` per factor, and `corrected_eigenvalues`. Eigenvectors are only fixed up to their
# sign, so we compare what does not depend on it: the eigenvalues, and the matrix.

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
# Which numbers $d$ make $U\,\mathrm{diag}(d)\,U^\top$ closest to $G_\ell$? An orthogonal $U$ keeps the Frobenius norm, so we may
# look in the basis, where the error splits into two parts that have nothing to do with each other:
#
# $$\lVert G_\ell - U\,\mathrm{diag}(d)\,U^\top\rVert_F^2 = \lVert U^\top G_\ell U - \mathrm{diag}(d)\rVert_F^2
# = \underbrace{\sum_{m\neq n} (U^\top G_\ell U)_{mn}^2}_{\text{no } d \text{ in it}} + \sum_m \big((U^\top G_\ell U)_{mm} - d_m\big)^2.$$
#
# The second sum is zero exactly when $d$ is the diagonal of $U^\top G_\ell U$, that is for $d = \Lambda$. No other eigenvalues in this basis do
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
# we come to it below. One more fact is exact: the trace. Rotations keep it, so $\sum\Lambda = \mathrm{tr}\, G_\ell$, whereas K-FAC's trace is
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
# eigenvalue, and the methods disagree about that mean: each at its own default would be a comparison of dampings.
#
# ## The damped inverse
#
# Adding $\lambda I$ moves all eigenvalues by $\lambda$ and no eigenvector. So in the basis the inverse is a division, number by number:
#
# $$(G_\ell + \lambda I)^{-1} v \;\approx\; Q_S \Big[\big(Q_S^\top V Q_A\big) \oslash (\Lambda + \lambda)\Big] Q_A^\top. \qquad [21]$$
#
# $V$ is the vector as an 8 × 50 matrix, $\oslash$ divides entry by entry. Four small products in place of a 400 × 400 solve; and a new
# $\lambda$ costs no new decomposition.

# %%
V = capture(model, objective, *ask[0])["hidden1"].matrices()[0]  # (8, 50): the gradient of a query's loss
λ = float(0.1 * Λ.mean())
x = Q_S @ ((Q_S.T @ V @ Q_A) / (Λ + λ)) @ Q_A.T
dense = torch.linalg.solve(ours + λ * torch.eye(400), V.flatten())
assert torch.allclose(x.flatten(), dense, atol=1e-8), "divide by Λ + λ, do not multiply; rotate back with Q_S · Q_Aᵀ"

# %% [markdown]
# `ek.solve` does the same for stacks of vectors in all layers, with one $\lambda$ for each layer.

# %%
stack = {name: pair.matrices() for name, pair in capture(model, objective, *ask[0]).items()}  # (50, o, i) each
solved = ek.solve(stack, damping={"hidden1": λ, "out": λ})
assert torch.allclose(solved["hidden1"][0], x, atol=1e-8), "solve disagrees with equation 21"

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
    λ = damping_of(ladder["G"], multiple)
    queries = {k: pair.matrices() for k, pair in capture(model, objective, *ask[0]).items()}
    found = {}
    for name, C in ladder.items():
        x = flatten(quiet(C.solve, queries, λ), ladder["G"].shapes)
        scores = quiet(influence, model, objective, train, ask, C, λ)
        found[name] = (C.to_dense(), x, scores)
    exact = found["G"]
    far = {k: [(v[i] - exact[i]).norm() / exact[i].norm() for i in (0, 1)] for k, v in found.items()}
    return {k: (*far[k], correlation(found[k][2], exact[2])) for k in found}


result = compare(model, ladder, 0.1)
for name, (matrix, solve, scores) in result.items():
    print(f"{name:9} matrix error {matrix:6.3f}   solve error {solve:6.3f}   score correlation {scores:5.2f}")
assert result["EK-FAC"][0] < result["K-FAC"][0], "EK-FAC is never further than K-FAC in this norm"

# %% [markdown]
# Read it column by column, for it holds a surprise in each.
#
# *The matrix.* H is the closest to G by far, and the ones below it lose step by step. (The identity's number only says that
# its scale is arbitrary.) Going from G to its blocks costs more than all that follows down to K-FAC.
#
# *The solve.* H, the closest matrix, has the **worst** inverse: it has negative eigenvalues near $-\lambda$, and dividing by almost zero
# is worse than any approximation. The matrix error tells little about what an inverse does.
#
# *The scores.* These are kinder: a correlation over examples forgives what is common to all. EK-FAC keeps most of what block G
# has, and the diagonal is hardly better than no curvature at all: in this basis it is couplings that count.
#
# ## Several networks, several dampings
#
# One network proves nothing. Take four: ReLU, tanh, a deeper one, and no hidden layer at all; and four dampings, from a hundredth
# to ten times the mean eigenvalue.

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
# lines fall from block G to the identity, and at how much of that fall larger damping takes away.

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
# With much damping all methods draw together: $(C+\lambda I)^{-1}$ tends to $I/\lambda$, whatever C is. So agreement at large damping is no
# praise of an approximation. With little damping the rungs lie far apart, and there the Kronecker structure costs more than anything
# above it.
#
# ## Does the correction always help?
#
# In the matrix, yes: that is a theorem. In the solve and in the scores it is a matter of counting. Each count below is over the
# sixteen combinations of network and damping.

# %%
pairs = [(row["EK-FAC"], row["K-FAC"]) for row in table.values()]
wins = [sum(bool(e[i] < k[i]) for e, k in pairs) for i in (0, 1)] + [sum(bool(e[2] > k[2]) for e, k in pairs)]
print(f"EK-FAC is closer than K-FAC: matrix {wins[0]} of 16, solve {wins[1]} of 16, scores {wins[2]} of 16")
gap = max(abs(float(e[2] - k[2])) for e, k in pairs)
print(f"the largest difference in score correlation: {gap:.2f}")
assert wins[0] == 16, "a theorem fails: do Λ and G use the same labels?"

# %% [markdown]
# So: always closer as a matrix, a little more often closer as an inverse, and about as often better as worse in the scores, where
# the two differ by very little either way. On these networks the correction is cheap and harmless rather than a leap; what
# it surely buys is the right trace, so that "0.1 times the mean eigenvalue" means what it says. The large step is the one from the
# diagonal to *any* of the Kronecker-factored forms.
#
# ## Climbing back up
#
# The Kronecker structure lost something. Can it be won back? We can multiply the exact $G$ with a vector without ever building it, at the
# price of a few gradients. So we can *solve* $(G+\lambda I)\,x = v$ by steps, and start with EK-FAC's answer. Write $M = G + \lambda I$ and $P$ for
# EK-FAC's version of it. Solving is minimising $\tfrac12 x^\top M x - x^\top v$, whose negative gradient is the residual $r = v - Mx$.
# Conjugate gradients walk along $P^{-1}r$, made conjugate to the directions before, and each step goes to the minimum
# along its direction: $\alpha = r^\top P^{-1} r \,/\, p^\top M p$.

# %%
λ = damping_of(G, 0.1)
v = {k: p.matrices() for k, p in capture(model, objective, *ask[0], measurement="log_likelihood").items()}
M = G.to_dense() + torch.diag(torch.cat([torch.full((o * i,), λ[k]) for k, (o, i) in G.shapes.items()]))


def climb(v, steps):
    """Conjugate gradients for one vector (D,), preconditioned by EK-FAC: the textbook's five lines a step."""
    P_inverse = torch.linalg.inv(ek.to_dense() + M - G.to_dense())
    x, r = torch.zeros_like(v), v
    z = p = P_inverse @ r
    for _ in range(steps):
        α = (r @ z) / (p @ M @ p)
        x, r_next = x + α * p, r - α * (M @ p)
        z_next = P_inverse @ r_next
        p = z_next + (r_next @ z_next) / (r @ z) * p
        r, z = r_next, z_next
    return x


# %% [markdown]
# `conjugate_gradients` does this for all queries at once, with any curvature as the preconditioner. `refine` wraps it as a curvature
# whose `matvec` is the exact G by products with the network, never a matrix; here we may check it against the dense one.

# %%
from inflib import refine
from inflib.solvers import conjugate_gradients

V = flatten(v, G.shapes)  # (50, D)
three = flatten(conjugate_gradients(G, v, λ, preconditioner=ek, steps=3).x, G.shapes)
assert torch.allclose(three[0], climb(V[0], 3), atol=1e-8), "is P damped with the same λ as M?"
dial = refine(ek, model, objective, train, steps=3)
assert torch.allclose(flatten(dial.solve(v, λ), G.shapes), three, atol=1e-8), "products with G disagree with the matrix"

# %% [markdown]
# Two ends of the dial are known. No step is EK-FAC's own answer, and one step is that answer times one number, which cannot change a
# correlation. Many steps are the exact solve. In between, look at how steep the first steps are, and compare with plain conjugate
# gradients, which start with the bare gradient.

# %%
gradients = capture(model, objective, X, y)
T = flatten({k: pair.matrices() for k, pair in gradients.items()}, G.shapes)  # (500, D)
exact_scores = -torch.linalg.solve(M, V.T).T @ T.T  # (50, 500)


def quality(steps, preconditioner):
    x = conjugate_gradients(G, v, λ, preconditioner=preconditioner, steps=steps).x
    return float(correlation(-flatten(x, G.shapes) @ T.T, exact_scores))


steps = (1, 2, 3, 5, 10, 20)
walks = {"from EK-FAC": [quality(k, ek) for k in steps], "plain": [quality(k, None) for k in steps]}
for name, values in walks.items():
    print(f"{name:12}", "  ".join(f"{k:2} steps {value:.3f}" for k, value in zip(steps, values, strict=True)))
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
assert walks["from EK-FAC"][4] > 0.95, "ten steps should come close to exact"

# %% [markdown]
# A handful of steps passes even the exact blocks: the products with G know about the coupling between layers that every rung
# below G had thrown away. The plain walk gets there too, later. This is the honest answer to "is EK-FAC good enough here?":
# climb a few steps for some queries, and see whether the ranking moves.
#
# Two cautions. A truncated walk is not linear in $v$, so only the query may be solved by it, never half on each side. And at very
# low damping the first steps can lower the correlation before they raise it: read the residual, which `solve_with_residual` returns.

# %%
solution = dial.solve_with_residual(v, λ)
print(f"relative residual after 3 steps, the mean over queries: {float(solution.residual.mean()):.2f}")
by_hand = (V - three @ M).norm(dim=1) / V.norm(dim=1)
assert torch.allclose(solution.residual, by_hand, atol=1e-6), "the residual is ‖v − (G + λ)x‖ / ‖v‖"

# %% [markdown]
# ## The ladder, to play with
#
# All of it at once: choose a network, one layer or all, and move the damping. The matrices stay as they are, for damping belongs to
# the solve; the table and the scatter move. Try three things. Push the damping down and watch H turn indefinite. Push it up and watch
# even the identity's points gather on the line. Then choose one layer: which part of block G's loss is gone, and why not all?

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
# ## Summary
#
# K-FAC's eigenvectors are worth keeping and its eigenvalues are not: measuring $\Lambda = \mathbb E[(Q_S^\top D\theta\, Q_A)^2]$ afresh
# costs one more pass over the data and gives the closest matrix with those eigenvectors, with the exact trace. The damped inverse
# stays two rotations and a division, so damping can be moved without refitting. Down the ladder, the Kronecker form costs more in the
# scores than cutting the layers apart, and far less than dropping couplings altogether; between EK-FAC and K-FAC the scores
# differ little, either way. A few preconditioned conjugate-gradient steps walk back up to the exact answer, and tell whether
# EK-FAC was good enough.
#
# Next, in notebook 06: what changes when an example is a sequence.
#
# ## Exercises
#
# Write each function in a new cell and call its check. The solution is folded away, and the cell after it runs it.
#
# ### 1. The damped inverse by hand (easy, 10 minutes)
#
# Write `solve_out(V, λ)`: equation 21 for the layer `out`, from `ek.Q_S`, `ek.Q_A` and `ek.eigenvalues`, for one matrix $V$ of shape (10, 9).
# The check knows four ways to get it wrong, none of which raises an error by itself.


# %%
def check_solve_out(answer):
    S_, A_, Λ_ = ek.Q_S["out"], ek.Q_A["out"], ek.eigenvalues["out"]
    V, damp = v["out"][0], λ["out"]
    came, truth = answer(V, damp), ek.solve(v, λ)["out"][0]
    transposed = S_.T @ ((S_ @ V @ A_.T) / (Λ_ + damp)) @ A_
    assert not torch.allclose(came, transposed), "transposed: into the basis it is Q_Sᵀ V Q_A, out of it Q_S · Q_Aᵀ"
    assert not torch.allclose(came, S_ @ ((S_.T @ V @ A_) * (Λ_ + damp)) @ A_.T), "that multiplies; an inverse divides"
    assert not torch.allclose(came, S_ @ ((S_.T @ V @ A_) / Λ_ + damp) @ A_.T), "λ is added to Λ, not to the quotient"
    assert not torch.allclose(came, (S_.T @ V @ A_) / (Λ_ + damp)), "still in the basis: rotate back"
    assert torch.allclose(came, truth, atol=1e-10), "another mistake: compare with ek.solve step by step"
    print("right. The transposed rotation gives another matrix of the same shape, and no error message")


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


# %% jupyter={"source_hidden": true}
def solve_out(V, λ):
    Q_S, Q_A, Λ = ek.Q_S["out"], ek.Q_A["out"], ek.eigenvalues["out"]
    return Q_S @ ((Q_S.T @ V @ Q_A) / (Λ + λ)) @ Q_A.T


check_solve_out(solve_out)

# %% [markdown]
# ### 2. One damping for all layers (medium, 15 minutes)
#
# Suppose a program damps every layer by the λ of `hidden1`. Write `unnoticed()`, which returns two numbers: the mean correlation
# over queries of the *total* EK-FAC scores so computed with the right ones, and the relative size $\lVert\text{difference}\rVert /
# \lVert\text{right}\rVert$ of the error in the scores of the layer `out` alone. `influence(..., keep=("layer",))` keeps layers apart, in the
# order of `ek.layers`. Which of the two would make a good test?


# %%
def check_unnoticed(answer):
    total, out = (float(number) for number in answer())
    print(f"total: correlation {total:.3f}; layer out: relative error {out:.2f}")
    assert out > 1e-6, "no error in out: are both dampings λ['hidden1'], or both right?"
    assert total > 0.95, "the total should look fine: did hidden1 get another damping as well?"
    assert 0.05 < out < 1, "is the error measured in out, the last of the layers?"


# %% [markdown]
# <details><summary>Solution</summary>
#
# The total hides the mistake behind the layer that was right; a layer's own share shows it at once.
#
# ```python
# def unnoticed():
#     same = dict.fromkeys(λ, λ["hidden1"])
#     good, bad = (influence(model, objective, train, ask, ek, d, keep=("layer",)) for d in (λ, same))  # (50, 500, 2)
#     return correlation(bad.sum(-1), good.sum(-1)), (bad - good)[..., 1].norm() / good[..., 1].norm()
#
#
# check_unnoticed(unnoticed)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def unnoticed():
    same = dict.fromkeys(λ, λ["hidden1"])
    good, bad = (influence(model, objective, train, ask, ek, d, keep=("layer",)) for d in (λ, same))  # (50, 500, 2)
    return correlation(bad.sum(-1), good.sum(-1)), (bad - good)[..., 1].norm() / good[..., 1].norm()


check_unnoticed(unnoticed)

# %% [markdown]
# ### 3. Another basis (harder, 20 minutes)
#
# The optimality of Λ holds for *any* orthogonal $U$. Write `best_in(U)`: the matrix closest to `G_hidden` among all with the
# eigenvectors in the columns of $U$. The check tries the identity as the basis, K-FAC's basis, and a random one. Before you run it:
# which basis would make the error zero, and what would it cost?


# %%
def check_best_in(answer):
    basis = torch.linalg.qr(torch.randn(400, 400, generator=torch.Generator().manual_seed(0)))[0]
    for name, Q in {"identity": torch.eye(400), "random": basis, "K-FAC's": U}.items():
        came = answer(Q)
        inside = Q.T @ came @ Q
        assert (inside - torch.diag(inside.diagonal())).norm() < 1e-8, "its eigenvectors are not U's columns"
        assert name != "K-FAC's" or not torch.allclose(inside.diagonal(), Λ_kfac.flatten()), (
            "those are K-FAC's own values"
        )
        assert torch.allclose(inside.diagonal(), (Q.T @ G_hidden @ Q).diagonal(), atol=1e-10), "the best is uᵀGu"
        print(f"{name:9} basis: relative error {error(came):.3f}")
    identity = torch.diag(G_hidden.diagonal())
    assert torch.allclose(identity, ladder["diagonal"].to_dense()[:400, :400], atol=1e-12), "inflib.diagonal is this"


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


# %% jupyter={"source_hidden": true}
def best_in(U):
    return U @ torch.diag((U.T @ G_hidden @ U).diagonal()) @ U.T


check_best_in(best_in)

# %% [markdown]
# ## References
#
# - R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*, arXiv 2308.03296.
# - T. George, C. Laurent, X. Bouthillier, N. Ballas, P. Vincent 2018, *Fast Approximate Natural Gradient Descent in a
#   Kronecker-factored Eigenbasis*: the correction and its optimality.
# - J. Martens, R. Grosse 2015, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*.
# - M. Hestenes, E. Stiefel 1952, *Methods of Conjugate Gradients for Solving Linear Systems*.
# - F. Dangel, B. Mucsányi, T. Weber, R. Eschenhagen 2025, *Kronecker-factored Approximate Curvature (KFAC) From Scratch*.
