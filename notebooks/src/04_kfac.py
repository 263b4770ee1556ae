# %% [markdown]
# # 04 · How can a d × d matrix be inverted at all?
#
# **The question.** The influence score $-\nabla m^\top(G+\lambda I)^{-1}\nabla\ell_n$ needs the inverse of a matrix
# with a row and a column for *every weight of the network*. A small network has fifty thousand weights, a large
# language model fifty billion. Written down, the matrix would fill ten billion disks of a terabyte. What can be
# assumed about $G$ that makes its inverse affordable, and what does each assumption cost?
#
# **What you need to know.** From notebook 03: a layer's gradient for one example is $D\theta = g a^\top$, laid out
# row by row as $g\otimes a$; $G$ is the mean of $D\theta D\theta^\top$ over examples and over labels drawn from the
# model; the identities $(M\otimes E)(M'\otimes E')=MM'\otimes EE'$ and
# $(M\otimes E)\,\mathrm{flatten}(V)=\mathrm{flatten}(MVE^\top)$. From linear algebra: eigenvalues of symmetric
# matrices. All symbols stand in [one table](notation.md).
#
# **Time.** About 45 minutes to read; it runs in less than half a minute on two CPU cores.

# %%
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn

from inflib.widgets import plots

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # before any model is built
plots.use_style()

# %% [markdown]
# The network of notebook 03 again: digits of 7 × 7 pixels, 49 → 8 → 10, five hundred training examples. It is small
# enough for the truth to be known.

# %%
from inflib import CrossEntropy
from inflib.lab import accuracy, mlp, mnist_5k, train


def pooled(inputs):
    """(N, 784) → (N, 49): the means of 4 × 4 pixels, in double precision."""
    return F.avg_pool2d(inputs.double().reshape(-1, 28, 28), 4).flatten(1)


digits, queries = mnist_5k().train[:500], mnist_5k().queries[::10]
X, y, N = pooled(digits.inputs), digits.labels, len(digits)
data, asked = [(X, y)], [(pooled(queries.inputs), queries.labels)]  # lists of (inputs, targets) batches

# %%
model = mlp((49, 8, 10), seed=0, dtype=torch.float64)
train(model, CrossEntropy(), X, y, epochs=100, batch_size=50, lr=3e-3, weight_decay=5e-3, progress=False)
print(f"{accuracy(model, X, y):.1%} of the training digits right")
assert sum(p.numel() for p in model.parameters()) == 490, "8 × 50 and 10 × 9, biases included"

# %% [markdown]
# ## The bill
#
# A layer with $o$ outputs and $i$ inputs (the bias's 1 among them) has $oi$ weights. Its part of $G$ alone has
# $(oi)^2$ entries of four bytes each, in single precision. To solve with it one factorises it first; Cholesky's method
# takes $(oi)^3/3$ operations. Look for the line at which this stops being possible.

# %%
layers = {  # name: (o, i)
    "this notebook, 49 → 8": (8, 50),
    "MNIST, 784 → 64": (64, 785),
    "width 768 → 3072 (GPT-2 small)": (3072, 769),
    "width 4096 → 11008 (7 billion)": (11008, 4096),
    "width 8192 → 32768 (50 billion)": (32768, 8193),
}
print(f"{'one layer of':32}{'weights':>11}{'bytes':>10}{'operations':>12}")
for name, (o, i) in layers.items():
    print(f"{name:32}{o * i:11.1e}{4 * (o * i) ** 2:10.1e}{(o * i) ** 3 / 3:12.1e}")
assert 4 * (64 * 785) ** 2 < 80e9 < 4 * (3072 * 769) ** 2, "(oi)² numbers of 4 bytes: a GPU of 80 GB stops between"

# %% [markdown]
# Ten gigabytes for an MNIST layer; a single layer of GPT-2 in its smallest size wants 22 terabytes; and the last line
# is beyond any machine. Structure has to be found in $G$, and K-FAC (Kronecker-factored approximate curvature,
# Martens & Grosse 2015) makes two assumptions to get it. We switch them on one at a time.
#
# ## The truth, and a ruler
#
# Everything is compared with the exact $G$, in two ways. The **matrix error** is $\|\hat G-G\|/\|G\|$ in Frobenius
# norm. The **score correlation** asks what we are really after. Take a query, and the scores of all training digits for
# it, once computed with $\hat G$ and once with $G$; correlate the two, and average over fifty queries. All solve with
# *the same damping*, a tenth of the mean eigenvalue of $G$'s block in each layer. (K-FAC's own mean eigenvalue is
# another number. Let each method take a tenth of its own, and you compare dampings.)

# %%
from dataclasses import replace

from inflib import damping_of, gauss_newton, influence

exact = gauss_newton(model, CrossEntropy(), data, progress=False)
G = exact.to_dense()  # (490, 490)
damping = damping_of(exact, 0.1)  # {layer: λ}
print(exact, "\n", {name: f"{number:.4f}" for name, number in damping.items()})
assert tuple(damping) == ("hidden1", "out"), "one number for each layer"


# %% [markdown]
# Every candidate goes through one and the same dense solver, so that nothing but the matrix differs.


# %%
def matrix_error(approximate, matrix=G):
    return ((approximate - matrix).norm() / matrix.norm()).item()


def scores_with(matrix):
    curvature = replace(exact, matrix=matrix)  # a curvature of the same class, with another matrix in it
    return influence(model, CrossEntropy(), data, asked, curvature, damping, progress=False)  # (50, 500)


# %%
def correlation(scores, reference):
    """Pearson's correlation of each query's scores, averaged over the queries."""
    ours, theirs = (each - each.mean(1, keepdim=True) for each in (scores, reference))
    return F.cosine_similarity(ours, theirs, dim=1).mean().item()


truth = scores_with(G)
assert abs(correlation(2 * truth + 1, truth) - 1) < 1e-12, "Pearson's correlation ignores scale and shift"

# %% [markdown]
# ## Assumption one: layers do not talk to each other
#
# Keep the diagonal blocks of $G$, one for each layer, and call everything else zero. Then each layer is solved by
# itself: for $L$ equal layers the bill falls $L$-fold in memory and $L^2$-fold in time.

# %%
blocks = {"hidden1": slice(0, 400), "out": slice(400, 490)}
block_G = torch.zeros_like(G)
for part in blocks.values():
    block_G[part, part] = G[part, part]
inflib_blocks = gauss_newton(model, CrossEntropy(), data, blocks=True, progress=False).to_dense()
assert torch.allclose(block_G, inflib_blocks, atol=1e-12), "blocks=True keeps the layers' own blocks and nothing else"

# %% [markdown]
# In the picture look at what is thrown away: the two strips outside the squares. Are they pale?

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4))
pictures = {"exact G": G, "its blocks": block_G, "what is dropped": G - block_G}
for ax, (title, values) in zip(axes, pictures.items(), strict=True):
    plots.matrix(ax, values, title, limit=G.abs().quantile(0.99).item())
    ax.axhline(399.5, color="black", linewidth=0.6)  # on the picture's own light ground
    ax.axvline(399.5, color="black", linewidth=0.6)
    ax.set(xticks=[200, 445], xticklabels=["hidden1", "out"], yticks=[200, 445], yticklabels=["hidden1", "out"])
    ax.set(xlabel="weights of layer", ylabel="weights of layer")
assert torch.equal(pictures["what is dropped"][part, part], torch.zeros(90, 90)), "only what lies off the blocks"

# %%
block_error, block_correlation = matrix_error(block_G), correlation(scores_with(block_G), truth)
print(f"blocks only: matrix error {block_error:.3f}, score correlation {block_correlation:.3f}")
assert 0.4 < block_error < 0.8, "what is dropped is no trifle"
assert block_correlation > 0.9, "and still the scores hardly notice"

# %% [markdown]
# They are not pale: an output weight and the hidden weights below it act on the same logits, and $G$ knows. (The
# empty band in the first square is a hidden unit that no digit switches on; we shall meet it again.) Measured by
# norm, the strips are six tenths of $G$, and we have put zeros in their place. Yet the scores keep a correlation of
# about 0.95. We shall see why in a moment. First, the other assumption *without* this one.
#
# ## Assumption two: activations and gradients are independent
#
# Let $\mathbb E$ be the mean over examples and over labels from the model. Between layers $l$ and $l'$ (the same or
# not), $G$ has the block
#
# $$\mathbb E\big[D\theta_l\,D\theta_{l'}^\top\big] = \mathbb E\big[(g_l\otimes a_l)(g_{l'}\otimes a_{l'})^\top\big] = \mathbb E\big[g_l\, g_{l'}^\top\otimes a_l\, a_{l'}^\top\big]
# \;\approx\; \mathbb E\big[g_l\, g_{l'}^\top\big]\otimes\mathbb E\big[a_l\, a_{l'}^\top\big].$$
#
# The first step is the row-major form of [15], the second the mixed product. The third is the assumption. In one layer,
# an entry on the left is $\mathbb E[g_jg_{j'}\,a_ka_{k'}]$, an entry on the right
# $\mathbb E[g_jg_{j'}]\,\mathbb E[a_ka_{k'}]$. The two agree if the products of gradients are *uncorrelated* with the
# products of activations, in particular if $g$ and $a$ are independent. The error is exactly their covariance. Nothing
# suggests that it is zero: $g$ is computed from $a$.
#
# Collect $a$, and $g$ for each of the ten possible labels, as in notebook 03.

# %%
from inflib import capture

p = model(X).softmax(-1).detach()  # (500, 10)
passes = [capture(model, CrossEntropy(), X, torch.full((N,), c)) for c in range(10)]
a = {name: pair.a[:, 0] for name, pair in passes[0].items()}  # (500, i)
g = {name: torch.stack([labels[name].g[:, 0] for labels in passes], 1) for name in a}  # (500, 10, o)

rows = torch.cat([(g[layer][..., None] * a[layer][:, None, None, :]).flatten(2) for layer in a], 2)  # (500, 10, 490)
by_definition = torch.einsum("nc,ncx,ncy->xy", p, rows, rows) / N
assert torch.allclose(by_definition, G, atol=1e-12), "weights p_c and 1/N, g before a: then E[Dθ Dθᵀ] is G"

# %% [markdown]
# That was the left side, the mean of Kronecker products. For the right side, two small means, for any two layers:


# %%
def mean_gg(left, right):
    """E[g gᵀ] over examples and over labels from the model, (o, o')."""
    return torch.einsum("nc,ncj,ncl->jl", p, g[left], g[right]) / N


def mean_aa(left, right):
    """E[a aᵀ] over examples, (i, i')."""
    return a[left].T @ a[right] / N


assert (mean_gg("hidden1", "out") - mean_gg("out", "hidden1").T).abs().max() < 1e-12, "E[g gᵀ] is symmetric as a whole"

# %% [markdown]
# Now the second assumption alone, in *all* blocks, the strips included (Martens and Grosse write $\tilde F$ for it):

# %%
strips = [torch.cat([torch.kron(mean_gg(one, other), mean_aa(one, other)) for other in a], dim=1) for one in a]
independent = torch.cat(strips)  # (490, 490)
independent_error = matrix_error(independent)
independent_correlation = correlation(scores_with(independent), truth)
print(f"independence only: matrix error {independent_error:.3f}, score correlation {independent_correlation:.3f}")
assert independent_error < block_error, "a smaller error in the matrix than dropping the strips"
assert independent_correlation < block_correlation, "but a larger one in the scores"

# %% [markdown]
# ### Is the assumption false, or are the data few?
#
# Would the error be there if $a$ and $g$ really were independent, merely because five hundred examples are few? Make
# them independent and see: give each digit's $a$ the $g$ of *another* digit, chosen by a random permutation. Each
# shuffle destroys the tie between the two, and keeps both sets of vectors as they are. If the unshuffled matrix lies
# no further from the product than the shuffled ones do, the assumption is as good as true.

# %%
A, S = {layer: mean_aa(layer, layer) for layer in a}, {layer: mean_gg(layer, layer) for layer in a}


def paired(layer, order):
    """The layer's block if example n had the gradients and label probabilities of example order[n]."""
    v = p[order].sqrt()[..., None, None] * g[layer][order][..., None] * a[layer][:, None, None, :]
    v = v.flatten(2).flatten(0, 1)  # (5000, o·i): Σ p v vᵀ is the product of √p v with itself
    return v.T @ v / N


for layer, part in blocks.items():
    assert torch.allclose(paired(layer, torch.arange(N)), G[part, part], atol=1e-12), "unshuffled, it is G's block"

# %%
generator = torch.Generator().manual_seed(0)
orders = [torch.randperm(N, generator=generator) for _ in range(10)]
for layer, part in blocks.items():
    product = torch.kron(S[layer], A[layer])
    shuffled = [matrix_error(paired(layer, order), product) for order in orders]
    real = matrix_error(G[part, part], product)
    print(f"{layer:8} distance from S ⊗ A: real pairs {real:.3f}, shuffled {min(shuffled):.3f} to {max(shuffled):.3f}")
    assert real > 1.5 * max(shuffled), f"{layer}: real pairs must lie further out; is a shuffled along with g?"

# %% [markdown]
# The real pairs lie several times further out than any shuffled ones. So $a$ and $g$ do depend on each other, and the
# assumption is false, in both layers, by more than the number of digits explains.
#
# Shuffling also tells what K-FAC *is*. Average over all shuffles, and every $a$ meets every $g$ equally often: the
# result is $S\otimes A$ exactly. K-FAC is the true curvature of an imaginary data set of $N^2$ examples in which all
# inputs of a layer are matched with all output gradients. For sixty digits, cyclic shifts produce every match once:

# %%
few = 60
a_few, g_few, p_few = a["out"][:few], g["out"][:few], p[:few]
total = torch.zeros(90, 90)
for shift in range(few):
    matched = (g_few.roll(shift, 0)[..., None] * a_few[:, None, None, :]).flatten(2)  # (60, 10, 90)
    total += torch.einsum("nc,ncx,ncy->xy", p_few.roll(shift, 0), matched, matched) / few
S_few, A_few = torch.einsum("nc,ncj,ncl->jl", p_few, g_few, g_few) / few, a_few.T @ a_few / few
assert torch.allclose(total / few, torch.kron(S_few, A_few), atol=1e-12), "the label weights must travel with g"

# %% [markdown]
# ## Both: K-FAC
#
# With both assumptions each layer's block is a Kronecker product of two small matrices, the second moments of
# activations and of output gradients:
#
# $$G_l\approx S\otimes A,\qquad A=\mathbb E[aa^\top]\;(i\times i),\qquad S=\mathbb E[gg^\top]\;(o\times o). \qquad [16]$$
#
# The paper stacks columns and writes $A\otimes S$; `inflib`, row-major, has $S\otimes A$ in `to_dense`. The library
# makes the same two sums in one pass over the data ([`kfac.second_moments`](../inflib/kfac.py)).

# %%
from inflib import kfac
from inflib.kfac import second_moments

curvature = kfac(model, CrossEntropy(), data, progress=False)
moments = second_moments(model, CrossEntropy(), data, progress=False)
by_kfac = curvature.to_dense()  # (490, 490)
for layer, part in blocks.items():
    assert torch.allclose(moments.A(layer), A[layer], atol=1e-12), f"{layer}: A divides by the number of examples"
    assert torch.allclose(moments.S(layer), S[layer], atol=1e-12), f"{layer}: S needs labels from the model"
    assert torch.allclose(by_kfac[part, part], torch.kron(S[layer], A[layer]), atol=1e-12), f"{layer}: S ⊗ A, not A ⊗ S"
print(f"{sum(o * o + i * i for o, i in curvature.shapes.values())} numbers in place of {G.numel()}")

# %% [markdown]
# ### Who pays what
#
# The matrix errors of the two assumptions do not mix. K-FAC differs from $G$ in the strips, by all of $G$; and inside
# the squares, by the independence error. These are different entries, so the *squares* of the errors add up, as in
# Pythagoras' theorem:

# %%
dropped, inside = (G - block_G).norm() ** 2, (block_G - by_kfac).norm() ** 2
assert torch.isclose((G - by_kfac).norm() ** 2, dropped + inside, rtol=1e-12), "disjoint entries: squares add up"
print(f"of K-FAC's squared matrix error, {dropped / (dropped + inside):.0%} is the dropped strips")
for layer, part in blocks.items():
    print(f"inside the block of {layer:8} relative error {matrix_error(by_kfac[part, part], G[part, part]):.3f}")

# %% [markdown]
# For the scores no such sum rule holds, so compare all four combinations. Does the matrix error order the three
# approximations as the scores do?

# %%
rungs = {"exact G": G, "blocks only": block_G, "independence only": independent, "both: K-FAC": by_kfac}
table = {name: (matrix_error(matrix), correlation(scores_with(matrix), truth)) for name, matrix in rungs.items()}
for name, row in table.items():
    print("{:18} matrix error {:.3f}   score correlation {:.3f}".format(name, *row))
assert table["both: K-FAC"][1] < min(independent_correlation, block_correlation), "both cost more than either"

# %% [markdown]
# No. The matrix column blames the dropped strips for nearly everything, the scores blame the independence. Why? Ask
# what a score measures. Write $P=(G+\lambda I)^{-1}$ for the true inverse, $\hat P$ for an approximate one, and $v$ for
# a query's gradient. The training digits come with gradients $v'$; *suppose* their labels were drawn from the model.
# Then $v'$ has the mean zero and the second moment $G$, and for this query the true score times the approximate one is,
# on average over the training digits,
#
# $$\mathbb E_{v'}\big[(v^\top P v')(v^\top\hat P v')\big]=v^\top P\;\mathbb E[v'v'^\top]\;\hat P v = v^\top P\,G\,\hat P\,v .$$
#
# The mean scores are zero, so the query's correlation is this product, divided by the roots of $v^\top PGPv$ and of
# $v^\top\hat PG\hat Pv$. It is the cosine of the angle between $G^{1/2}Pv$ and $G^{1/2}\hat Pv$. That is what our
# measure averages over queries.
#
# To see which *directions* it hears, average over queries too: each of the three forms first, and the ratio after that. We
# suppose that queries are like training digits. The mean of $v^\top PG\hat Pv$ is
# $\mathrm{tr}(PG\hat PG)=\langle G^{1/2}PG^{1/2},\,G^{1/2}\hat PG^{1/2}\rangle$. This is a correlation over *all
# pairs*, which weighs queries with large scores more; it need not equal the mean over queries, so we compute both. For
# one $\lambda$ the first matrix has the eigenvalue $\mu/(\mu+\lambda)$ where $G$ has $\mu$. So **every direction above
# the damping counts the same**, be its $\mu$ ten times $\lambda$ or a thousand times. A Frobenius norm of $G$ itself is
# ruled by the handful of largest $\mu$.


# %%
each_weight = torch.cat([torch.full((part.stop - part.start,), damping[k]) for k, part in blocks.items()])  # (490,)


def inverse(matrix):
    return torch.linalg.inv(matrix + each_weight.diag())


def cosine(product, ours, theirs):
    return product(ours, theirs) / (product(ours, ours) * product(theirs, theirs)) ** 0.5


of_queries = capture(model, CrossEntropy(), *asked[0], measurement="log_likelihood")
v = torch.cat([pair.matrices().flatten(1) for pair in of_queries.values()], dim=1)  # (50, 490): every query's ∇m


def by_query(P, other):
    return ((v @ P @ G) * (v @ other)).sum(1)  # vᵀ P G P' v for each query


def over_pairs(P, other):
    return ((P @ G) * (other @ G).T).sum()  # tr(P G P' G)


# %%
print(f"{'':18} actual scores   by query   over all pairs")
for name, matrix in rungs.items():
    P, true = inverse(matrix), inverse(G)
    predicted = cosine(by_query, P, true).mean().item(), cosine(over_pairs, P, true).item()
    print("{:18} {:13.3f} {:10.3f} {:16.3f}".format(name, table[name][1], *predicted))
    assert abs(predicted[0] - table[name][1]) < 0.03, f"{name}: G between the two inverses, and λ by layer?"
    assert abs(predicted[1] - predicted[0]) < 0.03, f"{name}: here queries are alike enough for one ruler"

# %% [markdown]
# Both predictions agree with the actual scores within 0.02, though those have real labels and unseen queries. So this
# is the ruler that scores use. How different it is from the Frobenius norm of $G$:

# %%
mu = torch.linalg.eigvalsh(G).flip(0).clamp_min(0)  # largest first
share = (mu[:10].square().sum() / mu.square().sum()).item()
counted = (mu / (mu + each_weight.mean())).square()  # one λ will do to count
share_in_scores = (counted[:10].sum() / counted.sum()).item()
print(f"ten largest eigenvalues: {share:.1%} of ‖G‖², {share_in_scores:.1%} of what the scores see")
assert share > 0.9 > 0.2 > share_in_scores, "the norm of G hears ten directions, the scores hear many"

# %% [markdown]
# That explains why the matrix error is a poor guide. Why dropping the strips does so *little* harm takes two steps.
#
# **How wrong can a direction be?** Split a direction $v$ into its layers' parts $v_l$. By the inequality of Cauchy and
# Schwarz,
#
# $$v^\top G v=\Big\|\sum_{l=1}^{L} G^{1/2}v_l\Big\|^2\le L\sum_l\big\|G^{1/2}v_l\big\|^2 = L\;v^\top G_{\rm blocks}\,v .$$
#
# The blocks alone never understate a direction's curvature by more than the number of layers $L$, two here. Damping
# included, $G_{\rm blocks}+\lambda I\succeq\frac1L(G+\lambda I)$, and an inverse turns the inequality round:
# $\hat P\preceq L\,P$. No direction enters the scores with more than twice its due. A Kronecker product carries no such
# guarantee. But a bound on *too much* says nothing about too little, nor about how many directions are affected.
#
# **How uneven is the error?** A factor common to all directions would go unnoticed, for a correlation ignores it. What costs
# correlation is that some directions get more than others. Compare $\hat P$ with $P$ by the eigenvalues of $\hat P\,P^{-1}$: 1 is a direction that
# counts just right. Dropping the strips changes $G$ in the strips alone, and each strip has at most the rank of the
# smaller layer, 90. So at most 2 · 90 of the 490 eigenvalues differ from 1, in pairs as far above it as below, and 310
# or more are exact. The independence assumption spares next to none but the directions without any curvature.
#
# Yet most of the 490 directions lie below the damping, where no score hears them. So each counts with its share of
# $\mathrm{tr}(PG)$, the sum of all $\mu/(\mu+\lambda)$. With these weights, look at how much of what is heard is right to
# within a tenth, and at the mean and the spread of the eigenvalues. The last column is the correlation that a mean and a
# spread leave, $\text{mean}/\sqrt{\text{mean}^2+\text{spread}^2}$.

# %%
root = torch.linalg.cholesky(G + each_weight.diag())
heard = torch.linalg.solve_triangular(root, torch.linalg.solve_triangular(root, G, upper=False).T, upper=False)
print(f"directions heard: tr(PG) = {heard.trace():.0f} of 490")
print(f"{'':18} smallest  largest  just right   heard: within a tenth   mean  spread  correlation")
spectrum = {}
for name, matrix in list(rungs.items())[1:]:
    relative, U = torch.linalg.eigh(root.T @ inverse(matrix) @ root)  # the eigenvalues of P̂ P⁻¹
    w = (U * (heard @ U)).sum(0) / heard.trace()  # each direction's share of tr(PG)
    near, exactly = (relative - 1).abs() < 0.1, ((relative - 1).abs() < 1e-9).sum()
    mean = w @ relative
    spread = (w @ (relative - mean).square()).sqrt()
    left = mean / (mean**2 + spread**2).sqrt()
    row = relative[0], relative[-1], exactly, w[near].sum(), mean, spread, left
    print("{:18} {:8.2f} {:8.2f} {:11} {:23.0%} {:6.2f} {:7.2f} {:12.3f}".format(name, *row))
    assert abs(left - cosine(over_pairs, inverse(matrix), inverse(G))) < 0.02, f"{name}: P̂ P⁻¹, weighted by tr(PG)?"
    spectrum[name] = relative, exactly
only_blocks, exactly = spectrum["blocks only"]
assert only_blocks[-1] < 2 < spectrum["independence only"][0][-1], "two layers: never more than twice its due"
assert exactly >= 310 > spectrum["independence only"][1], "the strips have rank 90, and touch 180 directions at most"
assert torch.allclose(only_blocks + only_blocks.flip(0), torch.full((490,), 2.0)), "in pairs, above and below 1"

# %% [markdown]
# So the blocks are no rarity of errors: of what the scores hear, less than half is right to within a tenth. But it is more
# than twice as much as K-FAC has, and nothing gets more than twice its due, where K-FAC has directions with five times
# theirs. The errors are less *uneven*, and the last column, which knows nothing else, is within 0.02 of the correlation
# over all pairs above.

# %% [markdown]
# Both columns of the table once more, as bars. Which bar is the odd one out?

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.1), sharey=True)
names = list(rungs)[1:]
plots.bars(axes[0], {name: table[name][0] for name in names}, what="matrix error (no unit)")
plots.bars(axes[1], {name: 1 - table[name][1] for name in names}, what="1 − score correlation")
axes[1].set_xticks([0, 0.05, 0.1, 0.15, 0.2])
assert table["blocks only"][0] > 2 * table["independence only"][0], "the strips cost most in the matrix"
assert block_correlation > independent_correlation + 0.03, "and least in the scores"

# %% [markdown]
# That of the blocks: on the left nearly as long as K-FAC's, on the right by far the shortest. Measure what you want
# to know: a matrix error is not a score error. (All this is one network and one damping; notebook 05 has several.)
#
# ## Inverting it
#
# Now the reward. By the mixed product, $(S\otimes A)(S^{-1}\otimes A^{-1}) = SS^{-1}\otimes AA^{-1} = I$. Together
# with the second identity of notebook 03 ($A$ is symmetric):
#
# $$(S\otimes A)^{-1}\,\mathrm{flatten}(V) = (S^{-1}\otimes A^{-1})\,\mathrm{flatten}(V) = \mathrm{flatten}\big(S^{-1}\,V\,A^{-1}\big). \qquad [17]$$
#
# Two small inverses and two small products. With random positive definite factors, to see that it holds:

# %%
M, E, V = (torch.randn(*shape, generator=generator) for shape in [(8, 8), (50, 50), (8, 50)])
S_random, A_random = M @ M.T + torch.eye(8), E @ E.T + torch.eye(50)
dense = torch.linalg.solve(torch.kron(S_random, A_random), V.flatten())
small = torch.linalg.inv(S_random) @ V @ torch.linalg.inv(A_random)
assert torch.allclose(small.flatten(), dense, atol=1e-10), "S acts on V from the left (outputs), A from the right"

# %% [markdown]
# With the *real* factors it fails, for neither has an inverse. This is no accident of rounding. Each null direction
# has a reason, and most networks have some of each kind. First, the gradients $p-e_y$ at the logits sum to zero. So $S$
# of a softmax layer maps the vector of ones to zero: adding the same number to all logits changes nothing.

# %%
assert (S["out"] @ torch.ones(10)).abs().max() < 1e-12, "p − e_y sums to zero for every label"

# %% [markdown]
# Second, a pixel that no digit ever touches is always −1, and the bias's input is always 1. The layer cannot tell a
# change of that pixel's weight from a change of the bias.

# %%
blank = (X == -1).all(0).nonzero().flatten()
same = torch.zeros(50)
same[blank[0]], same[-1] = 1, 1
print(f"{len(blank)} blank pixels")
assert (A["hidden1"] @ same).abs().max() < 1e-12, "a constant input says the same as the bias, with the other sign"

# %% [markdown]
# Third, a ReLU unit that is off for every digit passes no gradient back. Its row and column of $S$ are zero.

# %%
dead = (model.hidden1(X) <= 0).all(0)
print(f"{dead.sum()} dead hidden unit")
assert S["hidden1"].diagonal()[dead].abs().max() == 0, "no gradient passes a dead unit"

# %% [markdown]
# ## Damping, and why it wants the eigenbasis
#
# Damping repairs this, and notebook 02 showed that it is more than a repair: the proximal objective's Hessian *is*
# $G+\lambda I$. But $S\otimes A+\lambda I$ is not a Kronecker product of anything, and [17] no longer applies.
# Eigenvectors help. Write $S=Q_S\,\mathrm{diag}(\sigma)\,Q_S^\top$ and $A=Q_A\,\mathrm{diag}(\kappa)\,Q_A^\top$. The
# mixed product, twice, gives
#
# $$S\otimes A=(Q_S\otimes Q_A)\,\mathrm{diag}(\sigma\otimes\kappa)\,(Q_S\otimes Q_A)^\top .$$
#
# $Q=Q_S\otimes Q_A$ is orthogonal, since $QQ^\top = Q_SQ_S^\top\otimes Q_AQ_A^\top=I$. Therefore
# $\lambda I=Q\,(\lambda I)\,Q^\top$ in *this* basis as in any other, and adding it only shifts the diagonal: the
# eigenvalues become $\sigma_j\kappa_k+\lambda$. Undo the rotation on both sides:
#
# $$(S\otimes A+\lambda I)^{-1}\,\mathrm{flatten}(V)=\mathrm{flatten}\Big(Q_S\Big[\frac{Q_S^\top V Q_A}{\sigma\kappa^\top+\lambda}\Big]Q_A^\top\Big),$$
#
# with the division entry by entry. Two eigenproblems, of size $o$ and $i$, and any number of dampings afterwards for
# nothing.


# %%
def solve(S, A, V, number):
    """(S ⊗ A + λI)⁻¹ V for a stack V (…, o, i)."""
    sigma, Q_S = torch.linalg.eigh(S)
    kappa, Q_A = torch.linalg.eigh(A)
    rotated = Q_S.T @ V @ Q_A  # coordinates in the eigenbasis
    return Q_S @ (rotated / (torch.outer(sigma, kappa) + number)) @ Q_A.T


# %% [markdown]
# Against the dense solve, for the gradients of all fifty queries, and against the library's `solve` (the same three
# lines, in [`kronecker.Kronecker`](../inflib/kronecker.py)):

# %%
asked_about = {layer: pair.matrices() for layer, pair in of_queries.items()}  # the queries' gradients, (50, o, i)
solved = curvature.solve(asked_about, damping)
for layer, part in blocks.items():
    found = solve(S[layer], A[layer], asked_about[layer], damping[layer])
    damped = by_kfac[part, part] + damping[layer] * torch.eye(part.stop - part.start)
    dense = torch.linalg.solve(damped, asked_about[layer].flatten(1).T).T
    assert torch.allclose(found.flatten(1), dense, atol=1e-10), f"{layer}: Q_Sᵀ V Q_A in, Q_S · Q_Aᵀ out"
    assert torch.allclose(found, solved[layer], atol=1e-10), f"{layer}: inflib's solve is the same formula"

# %% [markdown]
# What does $\lambda$ do to the spectrum? The curves are the 400 eigenvalues of the block of `hidden1`, largest first,
# exact and by K-FAC. Look for how many lie under the line.

# %%
square = blocks["hidden1"]
spectra = {
    "exact block of G": (torch.linalg.eigvalsh(G[square, square]), plots.BLUE),
    "K-FAC, σ ⊗ κ": (torch.linalg.eigvalsh(by_kfac[square, square]), plots.ORANGE),
}
figure, ax = plt.subplots()
for name, (values, colour) in spectra.items():
    ax.semilogy(range(1, 401), values.flip(0).clamp_min(1e-9), color=colour, label=name)
ax.axhline(damping["hidden1"], color=plots.INK, linestyle="--", label="damping λ")
ax.set(xlabel="rank of the eigenvalue", ylabel="eigenvalue (nats per weight²)", ylim=(1e-8, None))
ax.legend()
above = {name: int((values > damping["hidden1"]).sum()) for name, (values, _) in spectra.items()}
print("eigenvalues above λ, of 400:", above)
assert max(above.values()) < 120, "damping decides about all the others"

# %% [markdown]
# About a quarter of the 400 directions stand above the line. In those the inverse divides by the curvature. In all
# others it divides by $\lambda$, more or less, as the plain dot product of gradients would. With $\lambda\to0$ the
# inverse would divide by next to nothing in the directions about which the data say least, and they would dominate
# every score.
#
# ### Not factor by factor
#
# K-FAC as an *optimiser* usually damps each factor, so that it may go on using [17]:
# $(S+\tfrac{\sqrt\lambda}{\pi}I)\otimes(A+\pi\sqrt\lambda I)$, with $\pi^2=\frac{\mathrm{tr}A/i}{\mathrm{tr}S/o}$ to
# balance the two. Multiply out:
#
# $$S\otimes A+\lambda I\;+\;\underbrace{\pi\sqrt\lambda\;S\otimes I+\tfrac{\sqrt\lambda}{\pi}\,I\otimes A}_{\text{nobody asked for these}}.$$
#
# In the eigenbasis the direction $(j,k)$ is damped by
# $\lambda+\pi\sqrt\lambda\,\sigma_j+\tfrac{\sqrt\lambda}\pi\kappa_k$ and not by $\lambda$: always more. How much
# more? One point is one of the 400 directions of `hidden1`; at 1 stands what was asked for.

# %%
number = damping["hidden1"]
σ, κ = (torch.linalg.eigvalsh(factor["hidden1"]).clamp_min(0) for factor in (S, A))
π = (κ.mean() / σ.mean()).sqrt()
effective = torch.outer(σ + number**0.5 / π, κ + π * number**0.5) - torch.outer(σ, κ)  # (8, 50)
figure, ax = plt.subplots()
ax.loglog(torch.outer(σ, κ).clamp_min(1e-9).flatten(), (effective / number).flatten(), ".", color=plots.ORANGE)
ax.axhline(1, color=plots.INK, linestyle="--", label="damping λ, as asked")
ax.set(xlabel="eigenvalue σⱼκₖ (1e-9 stands for all below)", ylabel="effective damping / λ (no unit)")
ax.legend()
print(f"median {(effective / number).median():.1f} times λ, largest {(effective / number).max():.0f} times λ")
mean_input = F.normalize(a["hidden1"].mean(0), dim=0)
assert abs(torch.linalg.eigh(A["hidden1"])[1][:, -1] @ mean_input) > 0.99, "A's top eigenvector is the mean input"
assert (effective >= number * (1 - 1e-12)).all(), "extra terms are positive semi-definite: π on A's side, 1/π on S's"


# %% [markdown]
# In this layer the median direction is damped five times as much as asked. The points in the row at the top, above a hundred, are the directions
# along the one large eigenvector of $A$, which is the mean input. There the term $\tfrac{\sqrt\lambda}{\pi}\kappa_k$ is
# huge. It even spills over into a direction without any curvature (top left: the dead unit's). No choice of $\lambda$
# undoes this, since the factor differs from point to point. What it does to the scores:


# %%
def factored(layer):
    A_l, S_l, number = A[layer], S[layer], damping[layer]
    π = ((A_l.trace() / len(A_l)) / (S_l.trace() / len(S_l))).sqrt()
    damped = torch.kron(S_l + number**0.5 / π * torch.eye(len(S_l)), A_l + π * number**0.5 * torch.eye(len(A_l)))
    return damped - number * torch.eye(len(damped))  # scores_with adds λ again


in_eigenbasis = table["both: K-FAC"][1]
by_factor = correlation(scores_with(torch.block_diag(*map(factored, blocks))), truth)
print(f"score correlation: damped in the eigenbasis {in_eigenbasis:.3f}, factor by factor {by_factor:.3f}")
assert by_factor < in_eigenbasis, "the same λ in name, a larger one in effect"

# %% [markdown]
# The ruler is exact $G$ at the $\lambda$ that was asked for. Another $\lambda$ would be another question.
#
# ## The bill, again
#
# For a layer of $o$ outputs and $i$ inputs K-FAC keeps two factors and their eigenvectors, $2(o^2+i^2)$ numbers. The
# symmetric eigenproblem of size $n$ takes about $9n^3$ operations (Golub & Van Loan), once. A solve is four small matrix
# products: $Q_S^\top V$ and $Q_S(\cdot)$ take $2o^2i$ each, $VQ_A$ and $(\cdot)Q_A^\top$ take $2oi^2$ each, a product
# and a sum being two operations. PyTorch can count along:

# %%
from torch.utils.flop_counter import FlopCounterMode

o, i = 8, 50
Q_S, Q_A = torch.linalg.eigh(S["hidden1"])[1], torch.linalg.eigh(A["hidden1"])[1]
with FlopCounterMode(display=False) as counter:
    _ = Q_S @ ((Q_S.T @ V @ Q_A) / (torch.outer(σ, κ) + number)) @ Q_A.T
print(counter.get_total_flops(), "operations counted")
assert counter.get_total_flops() == 4 * o * i * (o + i), "four products: 2·o·o·i and 2·o·i·i, on the way in and out"

# %% [markdown]
# Applied to the layers of the first table. Compare the two columns of bytes, and the two of operations to factorise:

# %%
print(
    f"{'one layer of':32}{'bytes, dense':>13}{'K-FAC':>9}{'/ layer':>8}{' factorise, dense':>18}{'K-FAC':>9}{'solve':>9}"
)
bill, times = {}, []
for name, (o, i) in layers.items():
    bill[name] = 4 * (o * i) ** 2, 8 * (o**2 + i**2), (o * i) ** 3 / 3, 9 * (o**3 + i**3), 4 * o * i * (o + i)
    times.append(bill[name][1] / (4 * o * i))  # K-FAC's bytes over those of the layer's weights
    print("{:32}{:13.1e}{:9.1e}{:8.0f}{:18.1e}{:9.1e}{:9.1e}".format(name, *bill[name][:2], times[-1], *bill[name][2:]))
assert bill["width 8192 → 32768 (50 billion)"][1] < 80e9, "the factors of the largest layer fit on one GPU"
assert min(times) > 6 and max(times) < 25, "2 (o/i + i/o): least for square layers, where it is 4"

# %% [markdown]
# The same bytes as a picture. Look at the slopes: which line runs beside that of the weights themselves?

# %%
figure, ax = plt.subplots()
sizes = [o * i for o, i in layers.values()]
ax.loglog(sizes, [row[0] for row in bill.values()], "o-", color=plots.ORANGE, label="dense block, (oi)² numbers")
ax.loglog(sizes, [row[1] for row in bill.values()], "o-", color=plots.BLUE, label="K-FAC, 2(o² + i²) numbers")
ax.loglog(sizes, [4 * size for size in sizes], ":", color=plots.GREY, label="the layer's weights themselves")
ax.axhline(80e9, color=plots.INK, linestyle="--", linewidth=0.8, label="a GPU of 80 GB")
ax.set(xlabel="weights of the layer", ylabel="memory (bytes)")
ax.legend()
steepness = (torch.tensor([row[1] for row in bill.values()]).log().diff() / torch.tensor(sizes).log().diff())[2:]
assert ((steepness - 1).abs() < 0.3).all(), "K-FAC's bytes grow as the weights do, not as their square"

# %% [markdown]
# K-FAC's: it takes 6 to 25 times the layer's own bytes (the column "/ layer"; the more oblong the layer, the more). So
# the inverse grows as the layer does, and no longer as its square. That is how more than $10^{17}$ bytes become some
# $10^{10}$. The price is what we measured above: an error of 0.64 of the matrix's norm, and about a fifth of the score
# correlation on this network.
#
# ## Where K-FAC is exact
#
# An approximation should be tested where it is *none*: there an implementation has to agree to all digits, and a
# transposed or forgotten factor has nowhere to hide. Both assumptions were statements about
# $\mathbb E[gg^\top\otimes aa^\top]$, so ask when that expectation splits into two.
#
# **One datum** (or copies of it). With a single input $a$ is a constant and leaves the expectation:
# $\mathbb E_y[gg^\top]\otimes aa^\top$. Labels still vary, and may.
#
# **A deep linear network with squared error.** Without activation functions, $f = W_L\cdots W_1 x$. Squared error has
# $H_{\rm out}=I$, whose seeds are $e_c$ for each output $c$ (notebook 03). They are carried back by the weights above
# alone, $g = (W_L\cdots W_{l+1})^\top e_c$: the same for *every* example. Now $g$ leaves the expectation over examples.
#
# In both cases each layer's block is exact. (The strips between layers are not zero. A network of one layer has
# none.)

# %%
from inflib import SquaredError


def compare(model, objective, data):
    """K-FAC's error against the exact blocks: in the matrix, and in the scores of all pairs."""
    blocks = gauss_newton(model, objective, data, labels="expected", blocks=True, progress=False)
    approximate = kfac(model, objective, data, progress=False)
    numbers = damping_of(blocks, 0.1)  # the same for both
    found, wanted = (influence(model, objective, data, data, c, numbers, progress=False) for c in (approximate, blocks))
    return matrix_error(approximate.to_dense(), blocks.to_dense()), matrix_error(found, wanted)


# %%
targets = F.one_hot(y, 10).double()
copies = [(X[:1].expand(20, 49), y[:1].expand(20))]
linear = mlp((49, 8, 6, 10), activation=nn.Identity, seed=1, dtype=torch.float64)
cases = {
    "one digit": (model, CrossEntropy(), [(X[:1], y[:1])]),
    "twenty copies of it": (model, CrossEntropy(), copies),
    "deep linear, squared error": (linear, SquaredError(), [(X, targets)]),
}
for name, case in cases.items():
    assert max(compare(*case)) < 1e-10, f"{name}: exact in theory, so look for a transposed or missing factor"
    print(f"{name:28} equal to 1e-10, matrix and scores")

# %% [markdown]
# Agreement to ten digits, in the scores as well, means little unless the test *can* fail. So leave each exact case by
# one step. Two digits for one. A ReLU between the linear layers. Cross-entropy on the linear network, whose
# $H_{\rm out}$ depends on the example. The data's labels, whose $g$ contains the example's residual.

# %%
relu = mlp((49, 8, 6, 10), seed=1, dtype=torch.float64)
near_misses = {
    "two digits": (model, CrossEntropy(), [(X[:2], y[:2])]),
    "deep ReLU, squared error": (relu, SquaredError(), [(X, targets)]),
    "deep linear, cross-entropy": (linear, CrossEntropy(), data),
}
for name, case in near_misses.items():
    in_matrix, in_scores = compare(*case)
    print(f"{name:28} matrix error {in_matrix:.3f}   score error {in_scores:.3f}")
    assert min(in_matrix, in_scores) > 1e-3, f"{name}: theory gives no reason for this to be exact"
observed = kfac(linear, SquaredError(), [(X, targets)], labels="observed", progress=False).to_dense()
truth_blocks = gauss_newton(linear, SquaredError(), [(X, targets)], blocks=True, progress=False).to_dense()
print(f"{'deep linear, observed labels':28} matrix error {matrix_error(observed, truth_blocks):.3f}")
assert matrix_error(observed, truth_blocks) > 1e-3, "exactness was for labels from the model"

# %% [markdown]
# And for the network of one layer the two assumptions hold for the *whole* $G$:

# %%
single = mlp((49, 10), seed=1, dtype=torch.float64)
whole = gauss_newton(single, SquaredError(), [(X, targets)], progress=False).to_dense()
factors = kfac(single, SquaredError(), [(X, targets)], progress=False)
assert matrix_error(factors.to_dense(), whole) < 1e-10, (
    "S = I here: E[g gᵀ] = Σ_c e_c e_cᵀ; a factor 10 is a mean over c"
)
linear_whole = gauss_newton(linear, SquaredError(), [(X, targets)], progress=False).to_dense()
print(f"strips of the deep linear network: {matrix_error(truth_blocks, linear_whole):.3f} of its G")
assert matrix_error(truth_blocks, linear_whole) > 0.1, "with several layers only the blocks are exact"

# %% [markdown]
# ## Summary
#
# $G$ cannot be written down for a real network. K-FAC assumes that layers do not interact, and that a layer's inputs
# and output gradients are independent; each block is then $S\otimes A$. On this network the first assumption costs most
# of the matrix error and little of the scores' correlation, the second the reverse: scores weigh every direction above
# the damping alike. The inverse needs two small eigenproblems, and damping belongs in their common eigenbasis, where
# $\lambda I$ stays $\lambda I$. The blocks are exact for one datum and for deep linear networks with squared error, and
# every implementation should be tested there.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. The mean eigenvalue (easy, 5 minutes)
#
# Default damping is a tenth of the mean eigenvalue. Write `mean_eigenvalue(S, A)` for $S\otimes A$, without building
# it or solving an eigenproblem.

# %% jupyter={"source_hidden": true}
from inflib.lab import exercise


@exercise
def check_mean_eigenvalue(answer):
    lines = []
    for layer, part in blocks.items():
        true, came = torch.linalg.eigvalsh(by_kfac[part, part]).mean(), torch.as_tensor(answer(S[layer], A[layer]))
        number = len(S[layer]) * len(A[layer])
        assert not torch.isclose(came, true * number), "that is the sum of the eigenvalues: divide by their number"
        assert torch.isclose(came, true), f"{layer}: {came:.4f} is not the mean; which sum does a trace give?"
        lines.append(f"{layer} K-FAC {came:.4f}, exact G {G[part, part].diagonal().mean():.4f}")
    return "right: " + "; ".join(lines)


# %%
def mean_eigenvalue(S, A):
    """The mean of the o·i eigenvalues of S ⊗ A."""
    return ...  # your answer


check_mean_eigenvalue(mean_eigenvalue)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The eigenvalues are $\sigma_j\kappa_k$, their sum $\big(\sum\sigma_j\big)\big(\sum\kappa_k\big)$. K-FAC's means are
# not those of $G$, which is why comparisons here pass one set of numbers to all methods.
#
# ```python
# def mean_eigenvalue(S, A):
#     return S.diagonal().mean() * A.diagonal().mean()
#
#
# check_mean_eigenvalue(mean_eigenvalue)
# ```
# </details>

# %% [markdown]
# ### 2. The error of independence (medium, 10 minutes, pencil and paper)
#
# A layer with a single weight, so that $a$ and $g$ are numbers and $G=\mathbb E[g^2a^2]$. Prove that K-FAC's error
# $S\otimes A-G$ is minus the covariance of $g^2$ and $a^2$. Then two examples, $(a,g)=(1,2)$ and $(3,1)$, with one
# label each: how large is the error $|SA-G|$ relative to $G$? Is K-FAC too large or too small when large inputs come
# with small gradients?


# %% jupyter={"source_hidden": true}
@exercise
def check_independence(answer):
    assert abs(answer - 6) > 1e-3, "that is the error itself; divide it by G"
    assert abs(answer - 12.5 / 6.5) > 1e-2, "that is S A / G, the ratio and not the error"
    assert abs(answer - 6 / 12.5) > 1e-2, "relative to K-FAC; the truth to be relative to is G"
    assert abs(answer - 2.5 / 6.5) > 1e-2, "(mean a)² is not A: square first, then take the mean"
    assert abs(answer - 6 / 6.5) < 1e-2, "not the number: A = (1 + 9) / 2 and S = (4 + 1) / 2"
    return "right: the covariance is negative here, so K-FAC overstates the curvature, by 92 per cent"


# %%
independence_error = ...  # your number

check_independence(independence_error)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\mathrm{Cov}(g^2,a^2)=\mathbb E[g^2a^2]-\mathbb E[g^2]\,\mathbb E[a^2]=G-SA$. Here $G=(4\cdot1+1\cdot9)/2=6.5$ and
# $SA=2.5\cdot5=12.5$. Large inputs with small gradients make the covariance negative and K-FAC too large.
#
# ```python
# independence_error = abs(2.5 * 5 - 6.5) / 6.5
#
# check_independence(independence_error)
# ```
# </details>

# %% [markdown]
# ### 3. Exact, with cross-entropy and all the data (medium, 10 minutes)
#
# Find weights for a single softmax layer, 49 → 10, with which K-FAC is exact on all five hundred digits. Write
# `exact_weights()`, returning a weight `(10, 49)` and a bias `(10,)`. What must not depend on the example?


# %% jupyter={"source_hidden": true}
@exercise
def check_exact_weights(answer):
    softmax = mlp((49, 10), dtype=torch.float64)
    weight, bias = answer()
    assert weight.shape == (10, 49), f"the weight has shape {tuple(weight.shape)}, expected (10, 49): a row a class"
    assert bias.shape == (10,), f"the bias has shape {tuple(bias.shape)}, expected (10,)"
    softmax.load_state_dict({"out.weight": weight, "out.bias": bias})
    opinion = softmax(X).softmax(-1).detach()
    spread = (opinion - opinion[0]).abs().max()
    assert spread < 1e-12, "the probabilities still depend on the digit, and E_y[g gᵀ] = diag(p) − ppᵀ with them"
    assert max(compare(softmax, CrossEntropy(), data)) < 1e-10, "p is constant, and still K-FAC is not exact"
    return "right: with p the same for all digits, g and a are independent"


# %%
def exact_weights():
    """A weight (10, 49) and a bias (10,)."""
    return ...  # your answer


check_exact_weights(exact_weights)

# %% [markdown]
# <details><summary>Solution</summary>
#
# With all weights zero, $p$ is the softmax of the bias, whatever the digit. Any bias will do. (Ten equal rows of weights
# work too: they add the same number to all logits.)
#
# ```python
# def exact_weights():
#     return torch.zeros(10, 49), torch.arange(10.0) / 10
#
#
# check_exact_weights(exact_weights)
# ```
# </details>

# %% [markdown]
# ### 4. Is S ⊗ A the best Kronecker product? (harder, 20 minutes)
#
# Write `nearest(M, o, i)`, which returns the two factors `(o, o)` and `(i, i)` of the Kronecker product closest to
# the block `M` in Frobenius norm. Hint: Van Loan and Pitsianis rearrange the entries $M_{(jk),(j'k')}$ into a matrix
# with rows $(j,j')$ and columns $(k,k')$. What does $S\otimes A$ become? Which matrix is the closest of rank one? The
# check also scores the training digits with your product. Before you run it: what do you expect, after this notebook?


# %% jupyter={"source_hidden": true}
@exercise
def check_nearest(answer):
    lines, closest = [], []
    for layer, part in blocks.items():
        block, o, i = G[part, part], len(S[layer]), len(A[layer])
        left, right = answer(block, o, i)
        assert left.shape == (o, o), f"expected the o × o factor first, came {tuple(left.shape)}"
        best, ours = matrix_error(torch.kron(left, right), block), matrix_error(by_kfac[part, part], block)
        rank_one = torch.linalg.svdvals(block.reshape(o, i, o, i).transpose(1, 2).reshape(o * o, i * i))
        bound = (rank_one[1:].norm() / rank_one.norm()).item()
        assert best <= ours, f"{layer}: {best:.3f}, worse than K-FAC's {ours:.3f}: is the order (j, j'), (k, k')?"
        assert abs(best - bound) < 1e-9, f"{layer}: {best:.4f}, the optimum is {bound:.4f}: is it the best of rank one?"
        lines.append(f"{layer} {best:.3f} (K-FAC {ours:.3f})")
        closest.append(torch.kron(left, right))
    scores = [correlation(scores_with(matrix), truth) for matrix in (torch.block_diag(*closest), by_kfac)]
    return f"right; matrix error {', '.join(lines)}; score correlation {scores[0]:.3f} (K-FAC {scores[1]:.3f})"


# %%
def nearest(M, o, i):
    """The factors (o, o) and (i, i) whose Kronecker product is closest to the block M (o·i, o·i)."""
    return ...  # your answer


check_nearest(nearest)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Rearranged, $S\otimes A$ has the entry $S_{jj'}A_{kk'}$ in row $(j,j')$ and column $(k,k')$: rank one. The closest
# matrix of rank one comes from the largest singular value. Its matrix error is smaller than K-FAC's in both layers, as
# it must be. And the second half of the check's line is the moral of this notebook once more: on this network the
# *closest* product has scores that correlate with the exact ones no better than K-FAC's. The search minimises the wrong
# error. Which product would be best for the scores, it does not tell.
#
# ```python
# def nearest(M, o, i):
#     rearranged = M.reshape(o, i, o, i).transpose(1, 2).reshape(o * o, i * i)
#     U, singular, W = torch.linalg.svd(rearranged, full_matrices=False)
#     return singular[0] * U[:, 0].reshape(o, o), W[0].reshape(i, i)
#
#
# check_nearest(nearest)
# ```
# </details>

# %% [markdown]
# ## References
#
# * J. Martens, R. Grosse 2015, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*,
#   [arXiv 1503.05671](https://arxiv.org/abs/1503.05671): K-FAC, both assumptions, factored damping and $\pi$.
# * R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*,
#   [arXiv 2308.03296](https://arxiv.org/abs/2308.03296): the equations in brackets.
# * A. Bernacchia, M. Lengyel, G. Hennequin 2018, *Exact Natural Gradient in Deep Linear Networks*, NeurIPS: why the
#   deep linear network is exact.
# * F. Dangel et al. 2025, *Kronecker-factored Approximate Curvature (KFAC) From Scratch*,
#   [arXiv 2507.05127](https://arxiv.org/abs/2507.05127): exact cases as tests.
# * C. Van Loan, N. Pitsianis 1993, *Approximation with Kronecker Products*; G. Golub, C. Van Loan, *Matrix
#   Computations*: the nearest product, and operation counts.
