# %% [markdown]
# # 03 · Where do the per-example gradients come from?
#
# **The question.** Notebook 02 ended with the score that the whole course computes,
#
# $$\mathcal I_m(n) = -\nabla m(\theta)^\top\,(G+\lambda I)^{-1}\,\nabla \ell_n(\theta).$$
#
# It needs the gradient of *every single* training example's loss $\ell_n$, and a matrix $G$ that is a mean over
# examples. PyTorch hands out neither: `loss.backward()` gives their mean or their sum, which tells nobody's share.
# Where do the separate gradients come from, what shape do they have, and how do they make up $G$?
#
# **What you need to know.** Backpropagation in PyTorch, matrix products, expected values; from notebook 02, that $G$
# is the mean of $J^\top H_{\rm out} J$. Numbers in brackets are the equations of Grosse et al. 2023: we need [14], [15]
# and [11], in this order. All symbols stand in [one table](notation.md).
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
# ## A network small enough to write its matrix down
#
# $G$ has as many rows as the network has parameters. To be able to look at all of it we shrink the digits from 28 ×
# 28 to 7 × 7 pixels, each the mean of a 4 × 4 square, and take eight hidden units. Five hundred digits are our
# training set.

# %%
from inflib.lab import mnist_5k


def pooled(inputs):
    """(N, 784) → (N, 49): the means of 4 × 4 pixels, in double precision."""
    return F.avg_pool2d(inputs.double().reshape(-1, 28, 28), 4).flatten(1)


digits = mnist_5k().train[:500]
X, y = pooled(digits.inputs), digits.labels  # (500, 49), (500,)
N = len(X)
_ = plots.images(X[:10].reshape(-1, 7, 7), [f"a {c}" for c in y[:10].tolist()])
assert X.abs().max() <= 1, "pixels should lie between −1 (paper) and 1 (ink)"

# %% [markdown]
# Coarse, but mostly still readable. The network is 49 → 8 → 10 with a ReLU between its two layers, `hidden1` and
# `out`.

# %%
from inflib import CrossEntropy
from inflib.lab import accuracy, mlp, train

model = mlp((49, 8, 10), seed=0, dtype=torch.float64)
train(model, CrossEntropy(), X, y, epochs=100, batch_size=50, lr=3e-3, weight_decay=5e-3, progress=False)
D = sum(p.numel() for p in model.parameters())
print(f"{D} parameters, {accuracy(model, X, y):.1%} of the training digits right")
assert D == 8 * 50 + 10 * 9, "hidden1 has 8 rows of 49 weights and a bias, out has 10 rows of 8 weights and a bias"

# %% [markdown]
# ## One matrix a layer: homogeneous coordinates
#
# A linear layer has a weight matrix $W$ and a bias $b$, two things to differentiate. Appending the constant 1 to the
# layer's input makes them one:
#
# $$z = W a + b = \underbrace{[\,W \;\; b\,]}_{\bar W}\underbrace{\begin{bmatrix} a\\ 1\end{bmatrix}}_{\bar a} = \bar W \bar a. \qquad [14]$$
#
# From here on we drop the bars: $a$ ends with a 1, and $W$ has the bias as its **last** column. `hidden1` is an 8 ×
# 50 matrix.


# %%
def with_one(a):
    return F.pad(a, (0, 1), value=1.0)  # (B, i) → (B, i + 1)


def matrix_of(weight, bias):
    return torch.cat([weight, bias[:, None]], dim=1)  # (o, i + 1)


W = matrix_of(model.hidden1.weight, model.hidden1.bias)
by_hand = with_one(X) @ W.T  # one example a row, so z = W a reads z = a Wᵀ
assert torch.allclose(by_hand, model.hidden1(X), atol=1e-12), "is the 1 appended on the side where the bias stands?"

# %% [markdown]
# ## The slow obvious way
#
# Give the network one example at a time, and call backward five hundred times. Slow, and certainly right: this is
# what every faster way below has to equal.


# %%
def slow_gradient(n):
    loss = F.cross_entropy(model(X[n : n + 1]), y[n : n + 1])
    w1, b1, w2, b2 = torch.autograd.grad(loss, list(model.parameters()))
    return matrix_of(w1, b1), matrix_of(w2, b2)


slow = [torch.stack(gradients) for gradients in zip(*map(slow_gradient, range(N)), strict=True)]
print([tuple(gradients.shape) for gradients in slow])

# %% [markdown]
# One 8 × 50 matrix and one 10 × 9 matrix for each digit. Ordinary training sees only their mean, which is what one
# backward pass through the mean loss returns:

# %%
mean_gradient = torch.autograd.grad(F.cross_entropy(model(X), y), model.out.weight)[0]
assert torch.allclose(mean_gradient, slow[1].mean(0)[:, :-1], atol=1e-12), "sum and mean confused?"

# %% [markdown]
# ## What a layer needs to know
#
# Why would 500 backward passes be wasteful? Because inside one layer, each gradient matrix is made of two vectors.
# The weight $W_{jk}$ enters the loss through $z_j = \sum_k W_{jk} a_k$ and nowhere else. Call the gradient at the
# layer's *output* $g_j = \partial\ell/\partial z_j$. The chain rule has a single path to follow:
#
# $$\frac{\partial \ell}{\partial W_{jk}} = \frac{\partial \ell}{\partial z_j}\frac{\partial z_j}{\partial W_{jk}} = g_j\, a_k,
# \qquad\text{that is}\qquad D\theta = g\,a^\top. \qquad [15]$$
#
# $D\theta$ is our name for the gradient of one example's loss in one layer's weights, kept as a matrix. It has rank
# one: 8 + 50 numbers instead of 8 × 50. So two vectors a layer are all that we have to ask of PyTorch, the activation
# $a$ going in, and the gradient $g$ at what comes out.
#
# (The paper writes $s$ for our $z$, and differentiates $\log p$ where we differentiate the loss $-\log p$, so that its
# gradients have the other sign. Everything below contains $g$ twice or states its sign.)
#
# ## First without a hook
#
# Write the forward pass out by hand, so that both outputs $z$ are in reach, and ask for the gradients at those. The
# losses may be summed first: row $n$ of $z$ influences the loss of example $n$ and no other, so the gradient of the
# *sum* at row $n$ is $g_n$. One backward pass yields all five hundred.

# %%
z1 = model.hidden1(X)  # (500, 8)
hidden = z1.relu()
z2 = model.out(hidden)  # (500, 10), the logits
losses = F.cross_entropy(z2, y, reduction="none")  # (500,), one number an example
g1, g2 = torch.autograd.grad(losses.sum(), [z1, z2])

fast = [g1[:, :, None] * with_one(X)[:, None, :], g2[:, :, None] * with_one(hidden)[:, None, :]]  # (500, o, i)
for ours, theirs in zip(fast, slow, strict=True):
    assert torch.allclose(ours, theirs, atol=1e-12), "off by 500: losses averaged. Transposed: a gᵀ in place of g aᵀ"

# %% [markdown]
# All five hundred gradients of both layers, from one forward and one backward pass. (What would break the argument is
# a layer that mixes the examples of a batch, as BatchNorm does while training. `inflib` refuses such a model and asks
# for `model.eval()`.)
#
# ## Hooks: the same for any model
#
# Rewriting the forward pass is no way to treat somebody else's transformer. A *forward hook* is a function that
# PyTorch calls whenever a module has run, with the module's inputs and output. It can look at both without a change
# to the model.

# %%
seen = {}


def look(module, inputs, output):
    seen["a"], seen["z"] = inputs[0], output


handle = model.out.register_forward_hook(look)
model(X)
handle.remove()  # or it stays on the model for ever
assert torch.equal(seen["a"], hidden), "the hook sees the input that we computed by hand"
assert torch.equal(seen["z"], z2), "and the output, before any activation function"

# %% [markdown]
# That is the whole trick. To watch every linear layer, put one hook on each, and take them off again *whatever
# happens inside*. A forgotten hook keeps every batch in memory, and on the next run of the cell the layer has two of
# them. Hence the `finally`.

# %%
from contextlib import contextmanager


@contextmanager
def watching(model):
    """{layer: (a, z)}, filled by the forward pass that runs inside the with."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def look(module, inputs, output, name=name):  # name=name: each hook keeps its own
                seen[name] = with_one(inputs[0].detach()), output

            handles.append(module.register_forward_hook(look))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# %% [markdown]
# Activations are read on the way forward. Then one backward pass, asked for the gradients at the layers' outputs and
# for nothing else: no weight gradient is computed, no `.grad` is touched.


# %%
def my_capture(model, X, y):
    """{layer: (a, g)} with a (B, i), its last entry 1, and g (B, o)."""
    with watching(model) as seen:
        losses = F.cross_entropy(model(X), y, reduction="none")
    g = torch.autograd.grad(losses.sum(), [z for _, z in seen.values()])
    return {name: (a, g_layer) for (name, (a, _)), g_layer in zip(seen.items(), g, strict=True)}


def matrices(a, g):
    return g[:, :, None] * a[:, None, :]  # (B, o, i)


pairs = my_capture(model, X, y)
for (name, pair), theirs in zip(pairs.items(), slow, strict=True):
    assert torch.allclose(matrices(*pair), theirs, atol=1e-12), f"{name}: are the layers in the order of the model?"
print({name: (tuple(a.shape), tuple(g.shape)) for name, (a, g) in pairs.items()})

# %% [markdown]
# And the promise about clean-up, tried with a forward pass that fails half way: no hook is left behind, no `.grad`
# was filled.

# %%
try:
    my_capture(model, X[:, :48], y)  # one pixel short
except RuntimeError:
    print("the forward pass failed, as it should")
assert not any(m._forward_hooks for m in model.modules()), "a hook is left: remove it in a finally"
assert all(p.grad is None for p in model.parameters()), "use torch.autograd.grad, not backward"

# %% [markdown]
# ## `inflib.capture`
#
# The library's function ([`proof.capture`](../inflib/proof.py), [`recording.Pair`](../inflib/recording.py)) takes these steps for
# any model and objective. Its tensors have one more axis: $a$ is `(B, T, i)` and $g$ is `(B, T, o)`, with a row for every
# *position* at which an example uses the layer: token, pixel of a convolution. A plain network has `T = 1`.
# `pair.matrices()` are the gradients.

# %%
from inflib import capture

captured = capture(model, CrossEntropy(), X, y)
for name, found in captured.items():
    a, g = pairs[name]
    assert torch.allclose(found.a[:, 0], a, atol=1e-14), f"{name}: is the 1 of the bias last?"
    assert torch.allclose(found.g[:, 0], g, atol=1e-14), f"{name}: the loss is summed, not averaged, over the batch"
    assert torch.allclose(found.matrices(), matrices(a, g), atol=1e-14), f"{name}: g aᵀ, not a gᵀ"
    print(f"{name:8} a {tuple(found.a.shape)}   g {tuple(found.g.shape)}   matrices {tuple(found.matrices().shape)}")

# %% [markdown]
# ### A trap: in place
#
# Our own `my_capture` has a hole, and the model above does not show it. A hook *looks at* a tensor; it does not copy it.
# `nn.ReLU(inplace=True)`, which many networks use to save memory, writes its result into the very tensor that the layer
# before it put out. What we kept as $z$ is then no longer what comes out of the layer, but what comes out of the ReLU.
# The same weights, in a network with such a ReLU:

# %%
from collections import OrderedDict

parts = OrderedDict(hidden1=model.hidden1, relu=nn.ReLU(inplace=True), out=model.out)
in_place = nn.Sequential(parts).eval()
assert torch.equal(in_place(X), model(X)), "the same function, with the same weights"
for (name, pair), theirs in zip(my_capture(in_place, X, y).items(), slow, strict=True):
    apart = (matrices(*pair) - theirs).norm() / theirs.norm()
    alike = torch.corrcoef(torch.stack([matrices(*pair).flatten(), theirs.flatten()]))[0, 1]
    print(f"{name:8} relative error {apart:.2f}   correlation {alike:.2f}")
    assert (apart > 0.1) == (name == "hidden1"), "the gradient at the ReLU's output lacks the ReLU's own derivative"

# %% [markdown]
# No error is raised, the shapes fit, and the correlation would pass for a right answer. Yet the gradients of `hidden1`
# are wrong: they take in units that are switched off. The remedy is to take hold, *inside the hook*, not of the tensor
# but of its place in autograd's graph, a **gradient edge**. The place stays where it was when the tensor is overwritten.

# %%
from torch.autograd.graph import get_gradient_edge

edges = {}
handle = in_place.hidden1.register_forward_hook(
    lambda module, inputs, output: edges.update(hidden1=get_gradient_edge(output))
)
losses = F.cross_entropy(in_place(X), y, reduction="none")
handle.remove()
(at_the_edge,) = torch.autograd.grad(losses.sum(), [edges["hidden1"]])
assert torch.allclose(at_the_edge, pairs["hidden1"][1], atol=1e-14), "was the edge taken inside the hook?"
safe = capture(in_place, CrossEntropy(), X, y)["hidden1"]
assert torch.allclose(safe.g[:, 0], at_the_edge, atol=1e-14), "inflib takes the edge too"
assert torch.allclose(safe.a[:, 0], pairs["hidden1"][0], atol=1e-14), "and copies a, which can be overwritten as well"

# %% [markdown]
# ## Looking at one digit
#
# Before the next step of algebra, a picture. We take a digit about which the network is undecided: its true class gets
# a probability nearest to one half. The left column is what goes into each layer, the middle one the gradient at
# its outputs, the right one their outer product. Take any two rows of a product: how do they differ? And compare the
# ten bars of $g$ at `out` with the network's opinion of the digit, which is printed below.

# %%
p = model(X).softmax(-1).detach()  # (500, 10): the network's opinion
n = (p[torch.arange(N), y] - 0.5).abs().argmin().item()  # true class nearest to even odds
figure, axes = plt.subplots(2, 3, figsize=(8.4, 4.4), width_ratios=[1, 1.3, 3])
for row, (name, (a, g)) in zip(axes, pairs.items(), strict=True):
    row[1].bar(range(len(g[n])), g[n], color=[plots.ORANGE if each > 0 else plots.BLUE for each in g[n]])
    row[1].axhline(0, color=plots.GREY, linewidth=0.6)
    row[1].set(xlabel=f"g: output of {name}", ylabel="∂ℓ/∂z", xticks=range(len(g[n])))
    plots.matrix(row[2], matrices(a, g)[n], f"{name}: g aᵀ", colourbar=True)
    row[2].set(xlabel="input (last column: the bias)", ylabel="output", aspect="auto")
axes[0, 0].imshow(X[n].reshape(7, 7), cmap="gray_r")
axes[0, 0].set(xticks=[], yticks=[], xlabel="a: 49 pixels (and a 1)")
axes[1, 0].bar(range(9), pairs["out"][0][n], color=plots.BLUE)
axes[1, 0].set(xlabel="a: 8 hidden units and a 1", ylabel="activation", xticks=range(9))
for name, (a, g) in pairs.items():
    assert torch.linalg.matrix_rank(matrices(a, g)[n]) == 1, f"{name}: one example's gradient has rank one"
print(f"digit {n} is a {y[n]}; the network says", {c: f"{p[n, c]:.2f}" for c in range(10) if p[n, c] > 0.05})

# %% [markdown]
# All rows of a product are one and the same row $a^\top$. Each is scaled by its own number of $g$, whose sign turns
# orange to blue or back. For `hidden1` that row *is* the digit (white paper is −1, ink is 1), which shows when each row
# is folded back into a picture:

# %%
figure, axes = plt.subplots(1, 8, figsize=(8.4, 1.4))
gradient = matrices(*pairs["hidden1"])[n]  # (8, 50)
for unit, ax in enumerate(axes):
    plots.matrix(ax, gradient[unit, :-1].reshape(7, 7), f"unit {unit}", limit=gradient.abs().max().item())
    ax.set_xlabel("off" if hidden[n, unit] == 0 else "on")
assert gradient[hidden[n] == 0].abs().max() == 0, "where ReLU is off no gradient passes, and the whole row is zero"

# %% [markdown]
# The same picture again and again, lighter or stronger, in both signs; units that ReLU has switched off learn nothing
# from this digit. At `out` the bars are $g = p - e_y$: the probabilities, with 1 taken off at the true class. So
# there is one blue bar, the true class, and a descent step raises its weights and lowers those of every other class.
# The bars sum to zero, because $p$ sums to one.

# %%
one_hot = torch.eye(10)
assert torch.allclose(pairs["out"][1], p - one_hot[y], atol=1e-12), "∂ℓ/∂f = p − e_y for cross-entropy, not e_y − p"
assert pairs["out"][1].sum(1).abs().max() < 1e-12, "p − e_y sums to zero"

# %% [markdown]
# ## From a matrix to a vector: vec and ⊗
#
# The curvature $G$ multiplies *vectors* of parameters, so the matrix $g a^\top$ has to be laid out as a vector. Two
# orders are in use, and mixing them up is a classic mistake. The **Kronecker product** $M\otimes E$ of two matrices is
# the block matrix whose block $(j,k)$ is $M_{jk}\,E$. For two vectors it is a list of all products, the second factor
# running fastest.
#
# * Stack the *columns*, as the paper and most books do: $\mathrm{vec}(g a^\top)$ holds $g a_1$, then $g a_2$, and so
#   on. This is $a\otimes g$, and is how [15] reads in the paper: $D\theta = a\otimes g$.
# * Lay out the *rows* one after the other, as `tensor.flatten()` does: $g_1 a$, then $g_2 a$, and so on. This is
#   $g\otimes a$, and is what `inflib` does.

# %%
small_a, small_g = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 100.0])
small = torch.outer(small_g, small_a)  # (2, 3)
by_columns, by_rows = small.T.flatten(), small.flatten()
print("by columns", by_columns.int().tolist(), "\nby rows   ", by_rows.int().tolist())
assert torch.equal(by_columns, torch.kron(small_a, small_g)), "columns stacked: a ⊗ g, with g running fastest"
assert torch.equal(by_rows, torch.kron(small_g, small_a)), "rows laid out: g ⊗ a, with a running fastest"

# %% [markdown]
# The same six numbers in another order. One fixed permutation $K$, which depends on the shape alone, leads from one
# to the other: $a\otimes g = K\,(g\otimes a)$. Both sides of a matrix are renumbered at once,
# $M_{\rm columns} = K M_{\rm rows} K^\top$. A permutation is orthogonal, so it changes no inner product, no norm, no
# eigenvalue and hence no influence score. For our digit:

# %%
a, g = pairs["hidden1"][0][n], pairs["hidden1"][1][n]  # (50,), (8,)
order = torch.arange(8 * 50).reshape(8, 50).T.flatten()  # K as a list: where entry k of vec stands in flatten
assert torch.equal(torch.kron(a, g), torch.kron(g, a)[order]), "K turns g ⊗ a into a ⊗ g, not the other way round"
paper, ours = torch.kron(torch.outer(a, a), torch.outer(g, g)), torch.kron(torch.outer(g, g), torch.outer(a, a))
assert torch.equal(paper, ours[order][:, order]), "renumber the rows and the columns"

# %% [markdown]
# ## Two identities that carry the next notebook
#
# **The mixed product.** $(M\otimes E)(M'\otimes E') = MM'\otimes EE'$. By blocks: a block of the product is
# $\sum_k (M_{jk}E)(M'_{kj'}E') = \big(\sum_k M_{jk}M'_{kj'}\big)\,EE'$, and that is block $(j,j')$ of the right side.
# Its transpose rule $(M\otimes E)^\top=M^\top\otimes E^\top$ is plain from the blocks too. With vectors for matrices
# it says what one example adds to $G$:
#
# $$(a\otimes g)(a\otimes g)^\top = (a\otimes g)(a^\top\otimes g^\top) = aa^\top\otimes gg^\top.$$
#
# **A Kronecker product times a vector.** Entry $(j,k)$ of $M V E^\top$ is $\sum_{j'k'} M_{jj'}E_{kk'} V_{j'k'}$, and
# $M_{jj'}E_{kk'}$ is the entry of $M\otimes E$ in row $(j,k)$ and column $(j',k')$, counted row by row. So
# $(M\otimes E)\,\mathrm{flatten}(V) = \mathrm{flatten}(MVE^\top)$; in the paper's order,
# $(E\otimes M)\,\mathrm{vec}(V)=\mathrm{vec}(MVE^\top)$. The large matrix on the left need never be built.

# %%
v = torch.kron(a, g)
assert torch.allclose(torch.outer(v, v), paper, atol=1e-12), "(a ⊗ g)(a ⊗ g)ᵀ = aaᵀ ⊗ ggᵀ: the order of factors stays"

random = torch.Generator().manual_seed(0)
M, E, V = (torch.randn(*shape, generator=random) for shape in [(8, 8), (50, 50), (8, 50)])
product = M @ V @ E.T
assert torch.allclose(torch.kron(M, E) @ V.flatten(), product.flatten()), "row-major: the left factor is the output's"
assert torch.allclose(torch.kron(E, M) @ V.T.flatten(), product.T.flatten()), "column-stacked: the factors swap"

# %% [markdown]
# The first dividend comes at once. The inner product of two gradients is
# $\langle g_q a_q^\top, g_n a_n^\top\rangle = (g_q\cdot g_n)(a_q\cdot a_n)$. So the dot products of all 250,000 pairs
# of gradients follow from two small tables of dot products, and no gradient is ever formed.

# %%
a, g = pairs["hidden1"]
dots = (g @ g.T) * (a @ a.T)  # (500, 500)
flat = matrices(a, g).flatten(1)  # (500, 400)
assert torch.allclose(dots, flat @ flat.T, atol=1e-10), "multiply the two tables entry by entry, not as matrices"

# %% [markdown]
# ## G, and the Fisher that equals it
#
# In notebook 02 the Gauss-Newton Hessian was built from Jacobians: with $J_n$ the derivative of example $n$'s ten
# outputs $f$ in the $D$ weights, and $H_{\rm out} = \nabla_f^2\,\ell$, the Hessian of the loss *in the outputs*,
#
# $$G = \frac1N\sum_n J_n^\top\, H_{\rm out}\, J_n.$$
#
# Here it is by `torch.func`, with no hook involved: the exact matrix that the rest of this notebook is measured
# against.

# %%
from torch.func import functional_call, hessian, jacrev, vmap


def outputs(parameters, x):
    return functional_call(model, parameters, (x[None],))[0]  # (10,)


def by_layer(tensors):  # {parameter: (..., *shape)} → (..., D), row-major, the bias as last column
    layers = [torch.cat([tensors[f"{k}.weight"], tensors[f"{k}.bias"][..., None]], -1) for k in ("hidden1", "out")]
    return torch.cat([layer.flatten(-2) for layer in layers], -1)


parameters = {name: each.detach() for name, each in model.named_parameters()}
J = by_layer(vmap(jacrev(outputs), in_dims=(None, 0))(parameters, X))  # (500, 10, 490)
H_out = vmap(hessian(F.cross_entropy))(model(X).detach(), y)  # (500, 10, 10)
G = torch.einsum("nca,ncd,ndb->ab", J, H_out, J) / N
print(f"J {tuple(J.shape)}, G {tuple(G.shape)}, trace of G {G.trace():.2f}")
assert torch.linalg.eigvalsh(G)[0] > -1e-12, "G has no negative eigenvalue: are H_out's and J's output axes paired?"

# %% [markdown]
# No label matters to this matrix: for cross-entropy $H_{\rm out} = \mathrm{diag}(p) - pp^\top$, without a $y$ in it.
# That is the key to writing $G$ with gradients. Suppose the loss is a **negative log-likelihood**,
# $\ell = -\log p(y\,|\,f)$. The probabilities sum to one whatever $f$ is; differentiate $\sum_y p(y|f) = 1$ once and
# twice in $f$. Since $p=e^{-\ell}$, we have $\nabla p = -p\,\nabla\ell$, and
#
# $$\sum_y p\,\nabla_f\ell = 0, \qquad\qquad \sum_y p\,\big(\nabla^2_f \ell - \nabla_f\ell\,\nabla_f\ell^\top\big) = 0.$$
#
# The second equation says
# $\mathbb E_{y\sim p}[\nabla_f\ell\,\nabla_f\ell^\top] = \mathbb E_{y\sim p}[\nabla^2_f\ell]$, for the label $y$
# drawn from $p$, **the model's own distribution**: those weights $p$ came from differentiating the model's
# probabilities, and no other weights will do. Multiply by $J_n^\top$ and $J_n$ from both sides. There
# $v = J_n^\top\nabla_f\ell$ is the gradient in the weights, all layers' $D\theta$ laid out as one vector. Average:
#
# $$G = \frac1N\sum_n\ \mathbb E_{y\sim p(\cdot|x_n)}\big[v\,v^\top\big] =: F. \qquad [11]$$
#
# (The paper lays $D\theta$ out without saying so, and writes $D\theta\,D\theta^\top$.)
#
# The right side is the **Fisher information**. Two conditions were used: the loss is a negative log-likelihood, and
# labels come from the model. (A third was silent: $\mathbb E[\nabla_f^2\ell]$ is the $H_{\rm out}$ of $G$. Here and
# for squared error $\nabla^2_f\ell$ holds no $y$, so nothing is left to average.)
#
# **What is "a label from the model" for squared error?** The model's output is a number and not a distribution, so one
# has to be named. $\ell = \frac12\|f-y\|^2$ is, up to a constant, the negative log-likelihood of a Gaussian with mean
# $f$ and variance one. So a label from the model is $y = f + \text{noise}$, with standard normal noise in each output.
# Then $\nabla_f\ell = f-y$ is minus the noise, whose second moment is $I = H_{\rm out}$: [11] holds, and the data's
# residuals do not enter. A program that takes the *data's* residuals there has the empirical Fisher, which is small
# where the fit is good. One that takes the most likely label, $y=f$, has zero.

# %%
noise = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(3))  # f − y, for a network of three outputs
second_moment = noise.T @ noise / len(noise)
print("labels from the model, squared error:", [f"{each:.2f}" for each in second_moment.flatten().abs().tolist()])
assert torch.allclose(second_moment, torch.eye(3), atol=0.02), "labels are f + noise of variance 1, for ½‖f − y‖²"

# %% [markdown]
# Back to the digits, first at the outputs of one of them. There are ten possible labels $c$, with gradient $p - e_c$
# each:

# %%
opinion = p[n]  # (10,)
at_outputs = opinion - one_hot  # (10, 10): row c is the gradient at the logits for label c
expected = torch.einsum("c,ci,cj->ij", opinion, at_outputs, at_outputs)
assert torch.allclose(opinion @ at_outputs, torch.zeros(10), atol=1e-12), "labels from the model: mean gradient 0"
assert torch.allclose(H_out[n], opinion.diag() - torch.outer(opinion, opinion), atol=1e-12), "H_out = diag(p) − ppᵀ"
assert torch.allclose(expected, H_out[n], atol=1e-12), "weights p_c once: √p_c or p_c² are the usual slips"
observed = torch.outer(at_outputs[y[n]], at_outputs[y[n]])
for kind, matrix in {"labels from the model": expected, "the data's label": observed}.items():
    largest = torch.linalg.eigvalsh(matrix).abs().flip(0)[:3].tolist()
    print(f"{kind:22} three largest eigenvalues", [f"{each:.3f}" for each in largest])

# %% [markdown]
# The label that the data happens to have gives something else altogether: a matrix of rank one.
#
# Now for the whole network. Ten backward passes, one a class $c$, pretend that *every* digit has label $c$. We keep all
# of these gradients, a row for each label and digit, in $R$. In the sum they are weighted by the probability that the
# model gives to the label.


# %%
def rows(pairs):
    """All layers' gradients as one row an example, (B, D): row-major, layers in order."""
    return torch.cat([matrices(a, g).flatten(1) for a, g in pairs.values()], dim=1)


R = torch.stack([rows(my_capture(model, X, torch.full((N,), c))) for c in range(10)])  # (10, 500, 490)
fisher = sum((p[:, c, None] * R[c]).T @ R[c] for c in range(10)) / N
error = (fisher - G).norm() / G.norm()
assert error < 1e-12, f"expected-label Fisher ≠ G ({error:.1e}): are the labels the model's, the weights p_c?"

# %% [markdown]
# Equal to twelve digits and better: hooks and labels on one side, Jacobians and $H_{\rm out}$ on the other, with no
# line of code in common. The library's functions are built the same two ways; its
# [`exact.gauss_newton`](../inflib/exact.py) goes through Jacobians.

# %%
from inflib import gauss_newton

data = [(X, y)]  # what inflib takes: any list of (inputs, targets) batches
exact = gauss_newton(model, CrossEntropy(), data, progress=False)
assert torch.allclose(exact.to_dense(), G, atol=1e-12), "row-major, the bias last: is yours column-stacked?"
print(exact)

# %% [markdown]
# ## Fewer passes: sampled labels
#
# Ten classes cost ten backward passes. A language model has fifty thousand classes for each token, and there the
# exact expectation is out of reach. But an expectation can be *sampled*: draw one label for each example from the
# model, take the gradient, repeat if you can afford it. To draw from $p$, throw a uniform number at the running sum
# of the probabilities.
#
# `R` already holds the gradient of every digit for every label, so here a draw only picks rows of it.

# %%
generator = torch.Generator().manual_seed(0)


def draw():
    """One label an example, from the model's own distribution, (500,)."""
    uniform = torch.rand(N, 1, generator=generator)
    return torch.searchsorted(p.cumsum(1), uniform).squeeze(1).clamp(max=9)


def fisher_of(labels):
    """The second moment of the gradients at these labels, one label an example."""
    r = R[labels, torch.arange(N)]  # (500, 490)
    return r.T @ r / N


labels = torch.stack([draw() for _ in range(1000)])
frequencies = torch.stack([(labels == c).double().mean(0) for c in range(10)], 1)
assert (frequencies - p).abs().max() < 0.08, "the labels must come from the model: p, not the argmax, not the data"

# %% [markdown]
# **How fast does the error fall?** Each draw's matrix is $G$ on average, and draws are independent. So the mean squared
# error of a mean of several draws is $\mathrm{Var}/\text{draws}$, where $\mathrm{Var}$ is that of a single one.
# Independent examples add their variances. With $v$ as in [11], the gradient of example $n$ at a random label, and
# $\|vv^\top\|=\|v\|^2$,
#
# $$\mathrm{Var} = \mathbb E\,\|F_{\rm one\ draw}-G\|^2 = \frac1{N^2}\sum_n \Big(\mathbb E\|v\|^4 - \big\|\mathbb E\,vv^\top\big\|^2\Big),$$
#
# which needs only the inner products of an example's ten possible gradients, as
# $\|\mathbb E\,vv^\top\|^2=\sum_{c,k}p_cp_k\,(v_c\cdot v_k)^2$. No fit, no free constant:

# %%
gram = torch.einsum("cnd,knd->nck", R, R)  # (500, 10, 10)
fourth = (p * gram.diagonal(dim1=1, dim2=2).square()).sum(1)  # E‖v‖⁴
square = torch.einsum("nc,nk,nck->n", p, p, gram.square())  # ‖E vvᵀ‖²
variance = (fourth - square).sum() / N**2
one_draw = (variance.sqrt() / G.norm()).item()
print(f"predicted relative error of one draw {one_draw:.3f}, of a hundred {one_draw / 10:.3f}")
assert fourth.ge(square).all(), "a variance is not negative: square the norm twice for E‖v‖⁴"

# %% [markdown]
# Now the experiment, five times over: draw a hundred labels for every digit, and follow the error of the running
# mean. The empirical Fisher, with the data's labels, stands beside it; it has nothing to draw.

# %%
errors, kept = torch.zeros(5, 100), {}
for repeat in range(5):
    total = torch.zeros(D, D)
    for draws in range(1, 101):
        total += fisher_of(draw())
        errors[repeat, draws - 1] = (total / draws - G).norm() / G.norm()
        if repeat == 0 and draws in (1, 10, 100):
            kept[draws] = total / draws
empirical = fisher_of(y)
observed_error = ((empirical - G).norm() / G.norm()).item()
print("draws   predicted   the five repeats")
for draws in (1, 10, 100):
    print(f"{draws:5} {one_draw / draws**0.5:11.3f}  ", *(f"{each:.3f}" for each in errors[:, draws - 1]))
print(f"observed labels: {observed_error:.3f}")
root_mean_square = errors.square().mean(0).sqrt()  # what the formula predicts: it is about squares
assert 0.75 < root_mean_square[-1] * 10 / one_draw < 1.25, "the error must fall as 1/√draws: are draws fresh each time?"
assert errors[:, 0].min() < one_draw < errors[:, 0].max(), "one draw: the repeats lie about the prediction"

# %% [markdown]
# Side by side, the block of $G$ that belongs to the layer `out`: 90 × 90, ten groups of nine, one group for each
# class. Above the matrices, below what they have more or less than $G$, all on one colour scale. Look at the lower
# row for two things: grain, which more draws should wash away; and whether the last picture holds anything that is
# *not* grain.

# %%
block = slice(400, 490)
shown = {"exact G": G, "1 draw": kept[1], "10 draws": kept[10], "100 draws": kept[100], "observed labels": empirical}
limit = G[block, block].abs().quantile(0.98).item()
figure, axes = plt.subplots(2, 5, figsize=(10, 4.6))
for (top, below), (title, values) in zip(axes.T, shown.items(), strict=True):
    plots.matrix(top, values[block, block], title, limit=limit)
    plots.matrix(below, (values - G)[block, block], f"{title} − G", limit=limit)
    below.set_xlabel("weights of out")
for ax in axes[:, 0]:
    ax.set_ylabel("weights of out")
block_error = {k: ((v - G)[block, block].norm() / G[block, block].norm()).item() for k, v in shown.items()}
print({title: f"{value:.3f}" for title, value in block_error.items()})
sizes, less = G[block, block].abs(), (empirical.abs() < G.abs())[block, block]
print(
    f"observed labels are smaller in size at entries that hold {sizes[less].sum() / sizes.sum():.0%} of the block's Σ|G|"
)
assert sizes[less].sum() > 0.9 * sizes.sum(), "a label that training has fitted has a small gradient"
assert block_error["1 draw"] > block_error["10 draws"] > block_error["100 draws"], "more draws, smaller error"

# %% [markdown]
# The matrix of a single draw is off in both directions at once, here too much and there too little; after a hundred
# draws the eye finds nothing left. The lower right picture is different: along the diagonal it is blue throughout.
# The empirical Fisher is not a noisy version of $G$. It is smaller in size nearly everywhere that $G$ is large: less
# orange where $G$ is orange, less blue where it is blue.
#
# The same as a curve. Both axes are logarithmic; a fall as $1/\sqrt{\text{draws}}$ is a straight line of slope −½.

# %%
number = torch.arange(1, 101)
figure, ax = plt.subplots()
ax.loglog(number, errors.T, color=plots.BLUE, alpha=0.5, linewidth=1, label=["sampled, five repeats"] + [None] * 4)
ax.loglog(number, one_draw / number.sqrt(), color=plots.INK, linestyle="--", label="predicted: √(Var / draws)")
ax.axhline(observed_error, color=plots.ORANGE, label="observed (empirical Fisher)")
ax.set(xlabel="draws per example", ylabel="‖F − G‖ / ‖G‖ (no unit)")
ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], labels=["0.02", "0.05", "0.1", "0.2", "0.5"])
ax.minorticks_off()
ax.legend()
fall = (root_mean_square[-1] / root_mean_square[0]).log10().item() / 2
print(f"slope of the measured error: {fall:.2f}")
assert -0.6 < fall < -0.4, "independent draws: the error falls as 1/√draws"
assert observed_error > errors[:, 0].max(), "more than one draw's noise: a bias"

# %% [markdown]
# Sampled labels keep to the predicted line, some a little below it, some above. The observed line is flat: its error
# is a *bias*, about twice the error of a single draw here, and no number of draws removes it. Its cause shows
# at the outputs. A label from the model is an unlikely one, with a large $\|p-e_y\|^2$, exactly as often as the model
# says. The data's label is mostly the one that training has fitted, and for it $p-e_y$ has shrunk.

# %%
own = (p[:, :, None] - one_hot).square().sum(1)  # (500, 10): ‖p − e_c‖² for every label c
model_mean, data_mean = (p * own).sum(1).mean(), own[torch.arange(N), y].mean()
print(f"mean ‖p − e_y‖²: labels from the model {model_mean:.3f}, from the data {data_mean:.3f}")
print(f"trace of the Fisher: expected {G.trace():.2f}, observed {empirical.trace():.2f}")
assert data_mean < model_mean, "a fitted network meets smaller gradients on its own data"
assert empirical.trace() < G.trace()

# %% [markdown]
# ## Does it matter for the scores?
#
# An honest question, since what we want is scores and not matrices. Take fifty digits that the network has not seen as
# queries, and score all training digits with each matrix. **All get the same damping**: a tenth of the mean eigenvalue
# of exact $G$ in each layer. How well do the scores agree with those from exact $G$? (Pearson's
# correlation over the training set, averaged over the queries.)

# %%
from inflib import damping_of, influence

queries = mnist_5k().queries[::10]
asked = [(pooled(queries.inputs), queries.labels)]
damping = damping_of(exact, 0.1)  # {layer: λ}


def scores_with(curvature):
    return influence(model, CrossEntropy(), data, asked, curvature, damping, progress=False)  # (50, 500)


def correlation(scores, reference):
    """Pearson's correlation of each query's scores, averaged over the queries."""
    ours, theirs = (each - each.mean(1, keepdim=True) for each in (scores, reference))
    return F.cosine_similarity(ours, theirs, dim=1).mean().item()


truth = scores_with(exact)
assert truth.shape == (50, 500), "a row for each query, a column for each training digit"

# %%
kinds = {f"{each} sampled": dict(labels="sampled", draws=each) for each in (1, 10, 100)}
kinds["observed"] = dict(labels="observed")
table = {}
for kind, options in kinds.items():
    curvature = gauss_newton(model, CrossEntropy(), data, **options, progress=False)
    error = ((curvature.to_dense() - G).norm() / G.norm()).item()
    table[kind] = error, correlation(scores_with(curvature), truth)
    print(f"{kind:12} matrix error {table[kind][0]:.3f}   score correlation {table[kind][1]:.3f}")
assert table["observed"][0] > 1.5 * table["1 sampled"][0], "the data's labels give the larger matrix error"
assert abs(table["observed"][1] - table["1 sampled"][1]) < 0.03, "and yet scores about as well as one draw"
assert abs(table["observed"][0] - observed_error) < 1e-12, "inflib's empirical Fisher is ours"

# %% [markdown]
# (Here `inflib` made its own draws. Its errors differ from those of the five repeats as they differ from one another.)
# Ten draws bring the correlation to 0.98. The last line is awkward: twice the matrix error of one draw, and hardly a lower
# correlation. But that was *one* draw. Eight of them, for the same network:

# %%
eight = [gauss_newton(model, CrossEntropy(), data, labels="sampled", seed=k, progress=False) for k in range(8)]
single = [correlation(scores_with(curvature), truth) for curvature in eight]
print(f"one draw, eight times: {min(single):.3f} to {max(single):.3f}; observed labels: {table['observed'][1]:.3f}")
assert table["observed"][1] < sorted(single)[2], "the data's labels should do no better than the worst draws"
assert table["observed"][1] > min(single) - 0.01, "and no worse"

# %% [markdown]
# So observed labels do as well as the worst of eight single draws, with an error twice as large in the matrix. Bias and noise hurt scores differently, and a correlation alone does not tell a wrong formula from
# an honest estimate. The course returns to this in notebook 10.
#
# `inflib` computes expected labels where classes are few, draws labels where they are many, and offers observed labels
# for comparison.
#
# ## A trap: one backward pass of $\sum_c \sqrt{p_c}\,\log p_c$
#
# Ten backward passes for ten classes invite a saving. We want $\sum_c p_c\,\nabla\log p_c\,\nabla\log p_c^\top$; so
# why not give each $\log p_c$ the weight $\sqrt{p_c}$ (held constant), add them up, call backward **once**, and
# multiply the result by itself? Multiply out what it computes:
#
# $$\Big(\sum_c\sqrt{p_c}\,\nabla\log p_c\Big)\Big(\sum_{k}\sqrt{p_k}\,\nabla\log p_k\Big)^\top = \underbrace{\sum_c p_c\nabla\log p_c\nabla\log p_c^\top}_{\text{the Fisher}} +
# \underbrace{\sum_{c\ne k}\sqrt{p_cp_k}\,\nabla\log p_c\nabla\log p_k^\top}_{\text{cross terms}}.$$
#
# Nothing makes the cross terms vanish. With two equally likely classes, they cancel the Fisher completely:

# %%
f = torch.zeros(2, requires_grad=True)  # logits with p = (½, ½)
log_p = f.log_softmax(0)
once = torch.autograd.grad((log_p.detach().exp().sqrt() * log_p).sum(), f)[0]
half = torch.tensor([0.5, 0.5])
print("trick        ", (torch.outer(once, once).round(decimals=6) + 0.0).tolist())  # + 0.0: no −0.0
print("diag(p) − ppᵀ", (half.diag() - torch.outer(half, half)).tolist())
assert once.abs().max() < 1e-12, "∇log p₁ = (½, −½) and ∇log p₂ = (−½, ½): equal weights cancel"

# %% [markdown]
# A matrix of zeros where the curvature is ¼. On our network the trick is one weighted sum of the rows in `R`, and the
# damage is this:

# %%
one_pass = torch.einsum("nc,cnd->nd", p.sqrt(), R)  # Σ_c √p_c ∇ℓ_c, the single backward pass
trick = one_pass.T @ one_pass / N
trick_error = ((trick - G).norm() / G.norm()).item()
print(f"relative error {trick_error:.3f}, trace {trick.trace():.2f} where G has {G.trace():.2f}")
assert trick_error > errors[:, 0].max(), "the cross terms are no rounding: further off than any single draw of labels"

# %% [markdown]
# The exact saving does not exist, since $H_{\rm out}$ has rank nine and one pass carries one vector. The right use of
# the square root is one pass *for each* class, with the seed $s_c = \sqrt{p_c}\,(p-e_c)$ at the logits:
# $\sum_c s_cs_c^\top = H_{\rm out}$. These are the `seeds` of `inflib.CrossEntropy` (which writes them with the
# opposite sign, and their squares do not care).

# %%
seeds = torch.stack(list(CrossEntropy().seeds(model(X).detach())))  # (10, 500, 10)
assert torch.allclose(torch.einsum("cni,cnj->nij", seeds, seeds), H_out, atol=1e-12), "Σ_c s_c s_cᵀ = H_out"

# %% [markdown]
# ## Summary
#
# A layer's gradient for one example is the outer product of the loss gradient at what came out, $g$, and what went in,
# $a$. A forward hook reads the second, and one backward pass to the layers' outputs yields the first for the whole
# batch. Laid out as a vector the gradient is $a\otimes g$ by columns or $g\otimes a$ by rows, equal up to a fixed
# permutation. The Gauss-Newton Hessian is the second moment of such gradients if the loss is a negative log-likelihood
# whose curvature in the outputs holds no label, and the labels come from the model. Drawn labels have an error that falls as $1/\sqrt{\text{draws}}$, and the data's
# own labels give another matrix. Next: $G$ is made of Kronecker products $aa^\top\otimes gg^\top$, and notebook 04 uses
# that to invert it.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. The bias column (easy, 5 minutes)
#
# Without calling autograd again: write `bias_gradients(pair)`, which takes what `capture` returns for a layer and
# gives every example's gradient of the *bias*, `(B, o)`.

# %% jupyter={"source_hidden": true}
from inflib.lab import exercise


@exercise
def check_bias_gradients(answer):
    for layer, true in (("hidden1", slow[0][:, :, -1]), ("out", slow[1][:, :, -1])):
        came = answer(captured[layer])
        assert came.shape == true.shape, f"{layer}: shape {tuple(came.shape)}; a row (o) for a column (i), or T kept?"
        assert torch.allclose(came, true, atol=1e-12), f"{layer}: not the LAST column: the first belongs to pixel 0"
    return "right: the bias's gradient is g itself"


# %%
def bias_gradients(pair):
    """Every example's gradient of the bias (B, o), from pair.a (B, 1, i) and pair.g (B, 1, o)."""
    return ...  # your answer


check_bias_gradients(bias_gradients)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The last entry of $a$ is 1, so the last column of $g a^\top$ is $g$; `pair.g[:, 0]` is another right answer.
#
# ```python
# def bias_gradients(pair):
#     return pair.matrices()[:, :, -1]
#
#
# check_bias_gradients(bias_gradients)
# ```
# </details>

# %% [markdown]
# ### 2. A layer used twice (medium, 10 minutes)
#
# A layer with weights `(3, 5)` reads five positions of an example, as it would read five tokens; the example's loss
# depends on all of them. Given $a$ `(B, T, i)` and $g$ `(B, T, o)`, write `summed(a, g)`: the gradients `(B, o, i)`.
# What is the rank of such a gradient?


# %% jupyter={"source_hidden": true}
@exercise
def check_summed(answer):
    layer = mlp((5, 3), bias=False, seed=1, dtype=torch.float64).out
    inputs = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(1))  # (B, T, i)
    put_out = layer(inputs)  # (B, T, o)
    losses = put_out.tanh().sum((1, 2)).square()
    at_output = torch.autograd.grad(losses.sum(), put_out, retain_graph=True)[0]
    true = torch.stack([torch.autograd.grad(one, layer.weight, retain_graph=True)[0] for one in losses])
    came = answer(inputs, at_output)
    crossed = at_output.sum(1)[:, :, None] * inputs.sum(1)[:, None, :]
    assert came.shape == true.shape, f"shape {tuple(came.shape)}, expected (B, o, i) = {tuple(true.shape)}"
    assert not torch.allclose(came, crossed), "(Σ g)(Σ a)ᵀ pairs each position's g with every other position's a"
    assert not torch.allclose(came, true / 5), (
        "that is the mean over positions; each use of the layer adds its own path"
    )
    assert torch.allclose(came, true), "not Σ_t g_t a_tᵀ: the same t in both, summed"
    return f"right; rank of the first gradient: {torch.linalg.matrix_rank(came[0])}"


# %%
def summed(a, g):
    """The gradients (B, o, i) of a layer used at T positions, from a (B, T, i) and g (B, T, o)."""
    return ...  # your answer


check_summed(summed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Each use adds its own path to the chain rule, so the gradient is $\sum_t g_t a_t^\top$, a matrix product over
# positions. Its rank is at most the smallest of T, o and i, here 3.
#
# ```python
# def summed(a, g):
#     return torch.einsum("bto,bti->boi", g, a)
#
#
# check_summed(summed)
# ```
# </details>

# %% [markdown]
# ### 3. A loss that is no log-likelihood (medium, 15 minutes, pencil and paper)
#
# Somebody trains with *twice* the cross-entropy, $\ell = -2\log p$, and draws labels from the softmax as before. The
# second moment of the gradients is then some factor times the $G$ of this loss. Derive the factor; the check computes
# both matrices.


# %% jupyter={"source_hidden": true}
@exercise
def check_factor(answer):
    second_moment = sum((p[:, c, None] * 2 * R[c]).T @ (2 * R[c]) for c in range(10)) / N
    gauss_newton_of_it = torch.einsum("nca,ncd,ndb->ab", J, 2 * H_out, J) / N
    assert answer != 1, "[11] was derived for ℓ = −log p; where did the derivation use that?"
    assert answer != 4, "4 compares with the G of the plain cross-entropy; this loss has a G of its own"
    assert torch.allclose(second_moment, answer * gauss_newton_of_it, atol=1e-12), f"the factor is not {answer}"
    return "right: gradients enter twice, the Hessian once"


# %%
factor = ...  # your number

check_factor(factor)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Every gradient doubles, so the second moment is four times the Fisher. $H_{\rm out}$ doubles, so $G$ is twice the
# Fisher. Their ratio is 2: scaling a loss is harmless to its minimum, and not to the identity F = G.
#
# ```python
# factor = 2
#
# check_factor(factor)
# ```
# </details>

# %% [markdown]
# ### 4. Rescue the trap (harder, 20 minutes)
#
# One backward pass can give an *unbiased* estimate of the Fisher, of all classes at once, if the weights are chosen
# well. Write `weights(p, generator)`, which returns random weights $w$ `(N, 10)` such that the second moment of
# $\sum_c w_c\nabla\ell_c$ is the Fisher on average. What do the cross terms need?


# %% jupyter={"source_hidden": true}
@exercise
def check_weights(answer):
    dice, total = torch.Generator().manual_seed(2), torch.zeros(D, D)
    assert not torch.equal(answer(p, dice), answer(p, dice)), "fixed weights keep the cross terms: draw them"
    for _ in range(200):
        drawn = torch.einsum("nc,cnd->nd", answer(p, dice), R)
        total += drawn.T @ drawn / (200 * N)
    apart, size = ((total - G).norm() / G.norm()).item(), (total.trace() / G.trace()).item()
    assert 0.9 < size < 1.1, f"the trace is {size:.2f} times that of G: E[w_c²] must be p_c and E[w_c w_k] zero"
    assert apart < 0.06, f"error {apart:.2f}: E[w_c w_k] must vanish for c ≠ k, so one sign for each class"
    return f"right: error after 200 draws below 0.06; one draw of labels has {one_draw:.2f}"


# %%
def weights(p, generator):
    """Random weights (N, 10) for one backward pass, from the probabilities p (N, 10)."""
    return ...  # your answer


check_weights(weights)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\mathbb E[w_c w_k]$ must be $p_c$ for $c=k$ and 0 otherwise: independent signs do it, $w_c=\pm\sqrt{p_c}$. (A drawn
# label is another answer: $w$ is 1 at that label and 0 elsewhere, whose cross terms are always 0.)
#
# ```python
# def weights(p, generator):
#     signs = 2.0 * torch.randint(2, p.shape, generator=generator) - 1
#     return signs * p.sqrt()
#
#
# check_weights(weights)
# ```
# </details>

# %% [markdown]
# ## References
#
# * R. Grosse et al. 2023, *Studying Large Language Model Generalization with Influence Functions*,
#   [arXiv 2308.03296](https://arxiv.org/abs/2308.03296): the equations in brackets.
# * J. Martens 2020, *New Insights and Perspectives on the Natural Gradient Method*,
#   [arXiv 1412.1193](https://arxiv.org/abs/1412.1193): when the Fisher is the Gauss-Newton Hessian.
# * F. Kunstner, L. Balles, P. Hennig 2019, *Limitations of the Empirical Fisher Approximation for Natural Gradient
#   Descent*, [arXiv 1905.12558](https://arxiv.org/abs/1905.12558): what observed labels break.
# * I. Goodfellow 2015, *Efficient Per-Example Gradient Computations*,
#   [arXiv 1510.01799](https://arxiv.org/abs/1510.01799): gradients of rank one.
# * F. Dangel et al. 2025, *Kronecker-factored Approximate Curvature (KFAC) From Scratch*,
#   [arXiv 2507.05127](https://arxiv.org/abs/2507.05127): the two flattening conventions, with code.
