# %% [markdown]
# # 02 · Why not just invert the Hessian?
#
# **The question.** Notebook 01 ended with $-\nabla m^\top H_\alpha^{-1}\nabla\ell_n$, and with refits that agreed with
# it. A neural network has a Hessian too. Why not invert it and be done? Because training is never quite finished,
# because there is no single minimum, and because the Hessian of a network is singular and has negative eigenvalues.
# This notebook shows each of these happen, and derives the question that has an answer nevertheless.
#
# **What you need to know.** Notebook 01, in particular its table of conditions; eigenvalues; what a Kullback-Leibler
# divergence is. Numbers in brackets are the equations of Grosse et al. 2023; all symbols stand in
# [one table](notation.md). In particular $H$ is the Hessian of the mean loss alone, here as there.
#
# **Time.** About 50 minutes to read; it runs in about a minute on two CPU cores.

# %%
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch.func import grad, hessian, jacrev, jvp, vmap

from inflib.widgets import plots

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # before any model is built
plots.use_style()

# %% [markdown]
# ## Two weights are enough
#
# The smallest network with a hidden layer has two weights, $f = \theta_1\theta_2\,x$: multiply by the first, then by
# the second. Its whole loss surface can be drawn. The inputs are all $x = 1$, so the output is $\theta_1\theta_2$;
# three training examples have the targets ½, 1 and 1½; the loss is $\ell_n = \frac12(\theta_1\theta_2 - y_n)^2$. The
# mean loss only cares how far the output is from the mean target $\bar y = 1$.

# %%
targets = torch.tensor([0.5, 1.0, 1.5])


def output(theta):
    return theta[0] * theta[1]


def example_loss(theta, y):
    return 0.5 * (output(theta) - y) ** 2


def mean_loss(theta):
    return example_loss(theta, targets).mean()


# %%
minimum = torch.tensor([2.0, 0.5])
mu = torch.linalg.eigvalsh(hessian(mean_loss)(minimum))
print(f"at the minimum, the eigenvalues of the Hessian are {mu[0].abs():.2f} and {mu[1]:.2f}")
assert grad(mean_loss)(minimum).norm() < 1e-12, "the output must equal the mean target, 1"
assert mu[0].abs() < 1e-12, "one eigenvalue should be zero: is the Hessian taken at the minimum?"

# %% [markdown]
# The point (2, ½) is a minimum, and one eigenvalue of its Hessian is zero: $H$ is **singular**. Derive it. With
# $v = (\theta_2, \theta_1)$, the gradient of the output,
#
# $$\nabla\ell_n = (f-y_n)\,v, \qquad \nabla^2\ell_n = v v^\top + (f - y_n)\begin{pmatrix}0&1\\1&0\end{pmatrix}.$$
#
# At a minimum $f = \bar y$, so the second term averages to zero and $H = vv^\top$, a matrix of rank one. Its null
# vector is $(\theta_1, -\theta_2)$: make the first weight larger and the second smaller by the same share, and the
# product stays as it is. No data can object, because the network computes the same function. Every ReLU unit of a
# network brings such a direction with it (its incoming weights up, its outgoing weights down). And any network has more
# of them wherever it has more weights than its data can hold in place.
#
# Look in the figure for the valley of minima $\theta_1\theta_2 = 1$, for the null direction along it, and for where the
# valley goes when the third example is counted more.

# %%
null = torch.tensor([minimum[0], -minimum[1]])
assert (hessian(mean_loss)(minimum) @ null).norm() < 1e-12, "the null vector is (θ₁, −θ₂), along the valley"


def grid(first, second):
    """All pairs of two ranges of weights, as coordinates to draw at and as points (…, 2)."""
    across, up = torch.meshgrid(first, second, indexing="xy")
    return across, up, torch.stack([across.flatten(), up.flatten()], dim=1)


# %%
across, up, points = grid(torch.linspace(0.2, 3.2, 121), torch.linspace(0.05, 2.0, 121))
values = vmap(mean_loss)(points).reshape(across.shape)
moved = (targets.mean() + 0.5 * targets[2]) / 1.5  # the weighted mean at ε = ½, as in notebook 01
fig, ax = plt.subplots(figsize=(6.4, 4.2))
ax.contour(across, up, values, levels=torch.logspace(-3, 1, 14).tolist(), colors=plots.GREY, linewidths=0.5)
ax.plot(across[0], 1 / across[0], color=plots.BLUE, label="minima: θ₁θ₂ = 1")
ax.plot(across[0], moved / across[0], "--", color=plots.ORANGE, label="minima when one example counts more")
ax.annotate("", xy=minimum + 0.4 * null, xytext=minimum, arrowprops={"arrowstyle": "->", "color": plots.INK})
ax.text(2.55, 0.2, "null direction", fontsize=8)
ax.plot(*minimum, "o", color=plots.BLUE)
ax.set(xlabel="first weight θ₁", ylabel="second weight θ₂", ylim=(0.05, 2.0))
ax.legend(loc="upper right")
off = (across * up - 1).abs()
assert values[off < 0.01].max() < values[off > 0.1].min(), "the valley is θ₁θ₂ = 1"

# %% [markdown]
# The whole valley moves, as a curve. "Where does the point (2, ½) go?" has no answer: any point of the dashed curve
# is a minimum of the new objective. Step 2 of notebook 01's table needed $H$ invertible, and this is what its failure
# looks like: not one curve $\theta(\varepsilon)$, but infinitely many.
#
# Two remedies suggest themselves. Ask only about the output, which all the new minima agree on; or pick, of all new
# minima, the nearest one. The second is what a small **damping** does: replace $H$ by $H + \lambda I$. In the
# eigenbasis of $H$, the component of $\nabla\ell_n$ along an eigenvector with eigenvalue $\mu$ is divided by
# $\mu + \lambda$. The gradient $\nabla\ell_n$ is a multiple of $v = (\theta_2, \theta_1)$, which is perpendicular to
# the null direction $(\theta_1, -\theta_2)$. So nothing is divided by $\lambda$ alone, and as $\lambda \to 0$ what is
# left is the move straight across the valley.

# %%
H = hessian(mean_loss)(minimum)
gradient = grad(example_loss)(minimum, targets[2])
move = -torch.linalg.solve(H + 1e-9 * torch.eye(2), gradient)
assert torch.allclose(move, -torch.linalg.pinv(H) @ gradient, atol=1e-6), "a vanishing damping gives the pseudo-inverse"
assert abs(move @ null) < 1e-6, "the damped step has nothing along the valley: it goes to the nearest new minimum"
print(f"dθ/dε = ({move[0]:.3f}, {move[1]:.3f}),  df/dε = {grad(output)(minimum) @ move:.3f}")

# %% [markdown]
# The output's slope, 0.5, is right: the target stands out by $y_n - \bar y = 0.5$, as the heavy digit of notebook 01
# did. So far the damage is small. Singular matrices are the harmless part.
#
# ## A model that is not at its minimum
#
# Now stop training early, at $\theta = (0.6, 0.5)$. The output, 0.3, is still well below the mean target. Two more
# conditions are gone at once.

# %%
stopped = torch.tensor([0.6, 0.5])
H = hessian(mean_loss)(stopped)
mu = torch.linalg.eigvalsh(H)
print(f"norm of the gradient {grad(mean_loss)(stopped).norm():.3f}, eigenvalues of H {mu[0]:.3f} and {mu[1]:.3f}")
assert grad(mean_loss)(stopped).norm() > 0.1, "an early stop leaves a slope"
assert mu[0] < -0.05, "an early stop leaves a negative eigenvalue"

# %% [markdown]
# The gradient is not zero: step 1 fails, and "the minimum near $\theta$" does not exist, as $\theta$ is on a slope. And
# $H$ is **indefinite**: in one direction the surface is curved like a hill. Step 3 fails. The matrix can be inverted
# all the same, nobody stops us, so let us see what formula [5] says about the third example. Its target, 1½, is far
# above the output 0.3. Counting it more should *raise* the output.

# %%
v = grad(output)(stopped)
by_hessian = -v @ torch.linalg.solve(H, grad(example_loss)(stopped, targets[2]))
print(f"df/dε by the inverse Hessian: {by_hessian:.2f}")
assert by_hessian < 0, "at this point the inverse Hessian turns the effect round"

# %% [markdown]
# It says that the output *falls*, and steeply. The formula solves $H\,d\theta/d\varepsilon = -\nabla\ell_n$: it looks
# for the place where the gradient of the new objective has the same value as before. On a hill one gets there by going
# up. (Newton's method has the same trouble: near a saddle it walks to the saddle.)
#
# Does damping help? Adding $\lambda$ to every eigenvalue makes them positive once $\lambda$ exceeds the size of the most
# negative one. But on the way there, one eigenvalue passes through zero. Look at the figure for what happens at that
# $\lambda$, the curve's **pole**; the second curve uses another matrix, $vv^\top$, of which more below.

# %%
lambdas = torch.logspace(-2, 1.5, 400)
push = grad(example_loss)(stopped, targets[2])  # ∇ℓ of the third example
G = torch.outer(v, v)
by_H = torch.stack([-v @ torch.linalg.solve(H + each * torch.eye(2), push) for each in lambdas])
by_G = torch.stack([-v @ torch.linalg.solve(G + each * torch.eye(2), push) for each in lambdas])
assert by_H.min() < -25, "left of the pole, H + λI turns the effect round"
assert by_H.max() > 25, "H + λI has a pole where an eigenvalue passes through zero"
assert (by_G > 0).all(), "v vᵀ + λI is positive definite: the right sign at every λ"
assert (by_G.diff() < 0).all(), "more damping, a smaller answer"
assert (by_H / by_G)[lambdas > 1].max() < 2.5 < (by_H / by_G)[(lambdas > 0.11) & (lambdas < 0.5)].min(), "far too large"

# %%
fig, ax = plt.subplots()
drawn = by_H.masked_fill(by_H.abs() > 25, torch.nan)  # or the two branches would be joined
ax.semilogx(lambdas, drawn, label="(H + λI)⁻¹")
ax.semilogx(lambdas, by_G, label="(G + λI)⁻¹ with G = v vᵀ")
ax.axvline(-mu[0], color=plots.GREY, linestyle=":", label="λ = − smallest eigenvalue of H")
ax.set(xlabel="damping λ (units of the eigenvalues)", ylabel="predicted df/dε", ylim=(-20, 20))
ax.legend()
assert lambdas[by_H.abs().argmax()].sub(-mu[0]).abs() < 0.01, "the pole is where λ cancels the eigenvalue"

# %% [markdown]
# With the Hessian, the prediction is negative for small $\lambda$, and shoots to infinity where $H + \lambda I$ becomes
# singular. Right of the pole the sign is right, and the size far too large at first. It is reasonable only where
# $\lambda$ is as large as the curvature itself, or larger. With $G = vv^\top$ nothing of the kind happens: the right sign everywhere, and a damping that merely shrinks the answer.
# Where does $G$ come from?
#
# ## Two parts of a Hessian
#
# Any per-example loss is a function of the network's outputs, $\ell_n(\theta) = \ell(f_n(\theta), y_n)$, where $f_n$ is
# a vector with an entry for each output $c$. Let $J_n = \partial f_n/\partial\theta$ be the Jacobian, a row for each
# output and a column for each weight. Differentiate twice, with the chain and the product rule:
#
# $$\nabla\ell_n = J_n^\top\,\frac{\partial\ell}{\partial f}, \qquad
# \nabla^2\ell_n = \underbrace{J_n^\top\,H_{\rm out}\,J_n}_{\text{curvature of the loss}} + \underbrace{\sum_c \frac{\partial\ell}{\partial f_c}\,\nabla^2 f_{n,c}}_{\text{curvature of the network}},
# \qquad H_{\rm out} = \frac{\partial^2\ell}{\partial f\,\partial f^\top}.$$
#
# The mean of the first part is the **Gauss-Newton Hessian**, $G = \frac1N\sum_n J_n^\top H_{\rm out}J_n$. Cross-entropy
# and squared error are convex *in the outputs*, so $H_{\rm out}$ has no negative eigenvalue, hence neither has $G$:
# $\Delta^\top G\Delta$ is a mean of $(J_n\Delta)^\top H_{\rm out}(J_n\Delta) \ge 0$ for any change $\Delta$ of the
# weights. All trouble is in the second part. It vanishes for a linear model, which is why notebook 01 never met it, and where every residual
# $\partial\ell/\partial f$ is zero. For our two weights the two parts are $vv^\top$, with $v$ the output's gradient as
# above, and $(f-\bar y)$ times the swap matrix:

# %%
swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
second = (output(stopped) - targets.mean()) * swap
assert torch.allclose(H, G + second), "H = G + residual × curvature of the network"
print("eigenvalues of G:", [round(x, 3) for x in torch.linalg.eigvalsh(G).abs().tolist()])
print("eigenvalues of the rest:", [round(x, 3) for x in torch.linalg.eigvalsh(second).tolist()])

# %% [markdown]
# `inflib` has both matrices, for any small model: [`exact.hessian`](../inflib/exact.py),
# [`exact.gauss_newton`](../inflib/exact.py). The two weights are a network of two bias-free linear layers, and the early
# stop is a model like any other. A curvature's `solve` takes the damping as an argument, and warns when the damped
# matrix is indefinite, as it is here at $\lambda = 0.05$:

# %%
import inflib

tiny = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
torch.nn.utils.vector_to_parameters(stopped, tiny.parameters())
data = [(torch.ones(3, 1), targets[:, None])]
tiny_H = inflib.hessian(tiny, inflib.SquaredError(), data, progress=False)
tiny_G = inflib.gauss_newton(tiny, inflib.SquaredError(), data, progress=False)
assert torch.allclose(tiny_H.to_dense(), H), "both parts"
assert torch.allclose(tiny_G.to_dense(), G), "the first part"

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tiny_H.solve({"0": torch.ones(1, 1, 1), "1": torch.ones(1, 1, 1)}, damping=0.05)
print([w.category.__name__ for w in caught])
assert caught[0].category is inflib.IndefiniteWarning, "an indefinite matrix should not be inverted silently"

# %% [markdown]
# ## The same, in a network that reads digits
#
# Is this an artefact of a toy? We train a network of 196 inputs (digits at 14 × 14), 16 hidden units and 10 classes on
# 300 digits. We train in the ordinary way: Adam, weight decay, minibatches, a number of epochs, stop. The hidden units
# are $\tanh$, so that everything has all derivatives. (With ReLU the conditions hold only away from its kinks, which a
# finite step may cross.)

# %%
from inflib.lab import mnist_5k


def pooled(inputs):
    return F.avg_pool2d(inputs.double().reshape(-1, 28, 28), 2).flatten(1)  # (N, 784) → (N, 196)


digits = mnist_5k()
X, y = pooled(digits.train.inputs[:300]), digits.train.labels[:300]
Xq, yq = pooled(digits.queries.inputs), digits.queries.labels

# %%
from inflib import CrossEntropy
from inflib.lab import accuracy, mlp, train

model = mlp((196, 16, 10), activation=torch.nn.Tanh, dtype=torch.float64)
train(model, CrossEntropy(), X, y, epochs=60, lr=3e-3, weight_decay=5e-3, progress=False)
print(f"right on {accuracy(model, X, y):.0%} of the training digits, {accuracy(model, Xq, yq):.0%} of the queries")
assert accuracy(model, Xq, yq) > 0.7, "an untrained network would make what follows meaningless"

# %% [markdown]
# To differentiate with respect to all weights at once, we want them as one vector $\theta$ of $D = 3322$ numbers, and
# the network as a function of it. The order is the course's: layer after layer, each weight matrix row by row, the bias
# as its last column.

# %%
shapes = ((16, 197), (10, 17))


def logits(theta, x):
    """The network as a function of one vector of weights (3322,)."""
    W1, W2 = (part.reshape(s) for part, s in zip(theta.split([16 * 197, 10 * 17]), shapes, strict=True))
    hidden = torch.tanh(x @ W1[:, :-1].T + W1[:, -1])
    return hidden @ W2[:, :-1].T + W2[:, -1]


layers = (model.hidden1, model.out)
trained = torch.cat([torch.cat([m.weight, m.bias[:, None]], 1).flatten() for m in layers]).detach()  # (3322,)
assert torch.allclose(logits(trained, X), model(X), atol=1e-12), "rows first, and the bias as last column"

# %% [markdown]
# Was training finished? If it were, the gradient of the objective $\mathcal J$ would be zero: of the mean loss plus the
# weight decay's $\frac\alpha2\|\theta\|^2$ with $\alpha=0.005$. Compare it with the gradient of a single example.


# %%
def loss(theta, x, y):
    return F.cross_entropy(logits(theta, x), y)  # the mean, for a batch


slope = grad(loss)(trained, X, y) + 5e-3 * trained  # ∇𝒥
single = vmap(grad(loss), (None, 0, 0))(trained, X, y).norm(dim=1)  # (300,)
print(f"gradient of the objective {slope.norm():.2f}; of one example: median {single.median():.2f}")
print(f"the slope that is left is worth {slope.norm() / (single.median() / 300):.0f} examples")
assert slope.norm() > 20 * single.median() / 300, "this run is at a minimum; nobody waits for that as a rule"

# %% [markdown]
# An example enters the objective with its gradient divided by $N = 300$: hence the second line. To count one example a
# little more, and train on until the gradient is zero, would show what training on does, and nothing of the example.
# Step 1 of the table fails, as it will wherever training stops after a number of epochs.
#
# Now the Hessian and the Gauss-Newton Hessian of the mean loss, both as full matrices of 3322 × 3322, and all their
# eigenvalues. This takes some seconds, and is the last time in this course that anybody computes such a thing lightly.

# %%
H = inflib.hessian(model, CrossEntropy(), [(X, y)], progress=False).to_dense()
G = inflib.gauss_newton(model, CrossEntropy(), [(X, y)], progress=False).to_dense()
any_v = torch.randn(3322, generator=torch.Generator().manual_seed(0))
Hv = jvp(lambda t: grad(loss)(t, X, y), (trained,), (any_v,))[1]  # derivative of the gradient along v
assert torch.allclose(H @ any_v, Hv, atol=1e-10), "H is the gradient's Jacobian; is the order of the weights the same?"

# %% [markdown]
# For $G$ the independent check computes $Gv = \frac1N\sum_n J_n^\top H_{\rm out}J_nv$ from right to left, never forming
# a matrix: how the logits change along $v$, times $H_{\rm out}$, and back. For softmax cross-entropy the gradient at
# the logits is $p - e_y$ ($e_y$ is one at the label and zero elsewhere), and its derivative
# $H_{\rm out} = \mathrm{diag}(p) - pp^\top$.

# %%
z, Jv = jvp(lambda t: logits(t, X), (trained,), (any_v,))  # both (300, 10)
p = z.softmax(1)
HJv = p * Jv - p * (p * Jv).sum(1, keepdim=True)  # (diag(p) − p pᵀ) J v
Gv = torch.func.vjp(lambda t: logits(t, X), trained)[1](HJv / len(X))[0]
assert torch.allclose(G @ any_v, Gv, atol=1e-10), "G is the mean of Jᵀ H_out J over the examples"

# %% [markdown]
# Their spectra. Eigenvalues are sorted, and drawn on an axis that is logarithmic on both sides of zero. Look for three
# things: where the two curves begin at the top, what is at the bottom, and the long middle.

# %%
of_H, of_G = torch.linalg.eigvalsh(H).flip(0), torch.linalg.eigvalsh(G).flip(0)
print(f"H: largest {of_H[0]:.1f}, smallest {of_H[-1]:.3f}; {int((of_H < -1e-5).sum())} are below −0.00001")
print(f"G: largest {of_G[0]:.1f}; {int((of_G < 1e-6).sum())} are below 0.000001, none of them negative")
assert of_H[-1] < -0.01, "H should be indefinite here"
assert of_G[-1] > -1e-10, "G is never indefinite: a mean of Jᵀ H_out J"

# %%
fig, ax = plt.subplots(figsize=(7.2, 3.8))
ax.plot(of_G, color=plots.BLUE, label="Gauss-Newton G")
ax.plot(of_H, color=plots.ORANGE, label="Hessian H")
ax.axhline(0, color=plots.GREY, linewidth=0.6)
ax.set_yscale("symlog", linthresh=1e-6)
ax.set(xlabel="eigenvalue number, from the largest", ylabel="eigenvalue (nats per unit of θ²)")
ax.legend()
assert (of_H[200:1800] > 2 * of_G[200:1800]).all(), "in the middle, the curve of H should lie well above that of G"

# %% [markdown]
# At the top, the two begin at the same order of magnitude, $H$ half as high again. In the long middle $H$ lies above $G$, by several times: the
# curvature of the network is not a small correction. At the bottom, $H$ has hundreds of negative eigenvalues. They are
# small beside the largest, but the inverse turns the order round: the smallest rule.
#
# $G$ falls through all the orders of magnitude that the axis shows, and a large part of it is as good as zero. Why?
# Some directions are null for reasons that can be counted:
#
# - **Too few examples.** Each example adds a matrix of rank 9 (ten classes, less one, because $p-e_y$ sums to zero). So
#   300 examples fill at most 2,700 of 3,322 dimensions.
# - **Inputs that say nothing.** A pixel that no digit touches is constant, as the bias's 1 is, and some pixels are sums
#   of others over these 300 digits. Every direction of inputs that never occurs is null for each of the 16 hidden units.
# - **Softmax.** The same number added to all ten logits changes nothing: one null direction for each of the 17 inputs
#   of the layer `out`.
#
# Count them, and compare with the eigenvalues that are zero to rounding.

# %%
inputs = torch.cat([X, torch.ones(300, 1)], dim=1)  # (300, 197)
never = 197 - torch.linalg.matrix_rank(inputs).item()
by_examples, by_inputs, zero = 3322 - 9 * 300, 16 * never + 17, (of_G < 1e-12).sum().item()
print(f"at least {by_examples} null directions because examples are few; at least {by_inputs} by inputs and softmax")
print(f"{zero} eigenvalues are zero to rounding: {zero - by_inputs} more than inputs and softmax account for")
print(f"{int((of_G < 1e-6).sum()) - zero} more lie below 0.000001")
assert max(by_examples, by_inputs) <= zero < 1.2 * by_inputs, "the reasons should account for nearly all of them"

# %% [markdown]
# The two counts overlap, so they do not add up. Inputs and softmax alone account for nine tenths, and leave fewer
# dimensions than the examples could fill; for 85 zeros we have no reason. Nor does a count explain the hundreds of *tiny*
# eigenvalues above rounding. (One reason among others: a digit that the network is sure of has a $H_{\rm out}$ of almost
# nothing.) So $G$ needs damping as well, and gets it. The difference is that any $\lambda > 0$ will do.
#
# What do the negative eigenvalues do to scores? A litmus test that needs no ground truth: counting an example more must
# not make *that example* less likely. So the influence of example $n$ on its own log-likelihood $m = -\ell_n$, which is
# $\nabla\ell_n^\top(M+\lambda I)^{-1}\nabla\ell_n$ with $M$ for either matrix, should be positive. We take
# $\lambda = 0.001$, of the order of a tenth of $G$'s mean eigenvalue, which is `inflib`'s default.

# %%
gradients = vmap(grad(loss), (None, 0, 0))(trained, X, y)  # (300, 3322)
own = {}
for name, M in (("H", H), ("G", G)):
    own[name] = (gradients * torch.linalg.solve(M + 0.001 * torch.eye(len(M)), gradients.T).T).sum(1)
    print(f"{name}: {int((own[name] < 0).sum()):2d} of 300 examples would make themselves less likely")
assert (own["G"] > 0).all(), "G + λI is positive definite: an example cannot be its own opponent"
assert (own["H"] < 0).sum() >= 5, "with the Hessian some are, at this damping"
assert 0.03 < 0.001 / of_G.mean() < 0.3, "the damping should be of the order of a tenth of the mean eigenvalue"

# %% [markdown]
# With the Hessian, some examples are opponents of themselves, and nobody can tell how many of the other scores are as
# wrong. A damping that exceeds the most negative eigenvalue in size rules that out. We shall try one below; but in a network too large
# for this experiment nobody knows where the pole is.

# %% [markdown]
# ## A better question
#
# We could now say "use $G$ in place of $H$, because it works". But what would the score then *mean*? Influence is the
# derivative of a response, so there should be an objective whose response it is. Here is the idea, due to Bae et al.
# (2022). The trained weights, wherever training stopped, are taken as they are; call them $\theta^\circ$. Let the
# network be asked: **change what you say about the training data as little as possible, and your weights too, while
# paying $\varepsilon$ times the loss of example $n$.** The minimum at $\varepsilon = 0$ is then $\theta^\circ$ by
# construction.
#
# "Change as little as possible what you say" needs a distance between outputs that fits the loss.
#
# ### Bregman divergence
#
# A convex function lies above its tangents. The gap between function and tangent is the Bregman divergence. For the
# loss as a function of the outputs $f$, with the tangent at $f^\circ$,
#
# $$\mathcal B(f, f^\circ) = \ell(f, y) - \ell(f^\circ, y) - \nabla_{\!f}\,\ell(f^\circ, y)^\top(f - f^\circ). \qquad [8]$$
#
# Look for the gap in the figure. The loss drawn is that of a yes-or-no output with label yes, $\log(1+e^{-f})$.

# %%
f, f0 = torch.linspace(-4, 4, 161), torch.tensor(1.0)
yes, no = F.softplus(-f), F.softplus(f)  # the losses of the two labels, log(1 + e^∓f)
tangent_yes = F.softplus(-f0) - torch.sigmoid(-f0) * (f - f0)
tangent_no = F.softplus(f0) + torch.sigmoid(f0) * (f - f0)
assert (yes - tangent_yes >= -1e-15).all(), "a convex function lies above its tangent"
assert torch.allclose(yes - tangent_yes, no - tangent_no), "the gap is the same whatever the label"

# %%
fig, ax = plt.subplots()
ax.plot(f, yes, label="loss of label yes")
ax.plot(f, tangent_yes, "--", color=plots.GREY, label="its tangent at the trained output f° = 1")
ax.vlines(f[30], tangent_yes[30], yes[30], color=plots.ORANGE, label="Bregman divergence at one f")
ax.set(xlabel="output f (logit)", ylabel="loss (nats)")
ax.legend()
assert (f[(yes - tangent_yes).argmin()] - f0).abs() < 1e-9, "the gap closes where the tangent touches"

# %% [markdown]
# Three properties: $\mathcal B \ge 0$ by convexity; $\mathcal B = 0$ with *slope zero* at $f = f^\circ$; and the
# curvature of $\mathcal B$ is that of the loss, $H_{\rm out}$, as only a straight line has been subtracted. The check
# adds a fourth: the label does not matter. The losses of the two labels differ by a straight line,
# $\ell(f, \text{no}) - \ell(f,\text{yes}) = f$, and straight lines drop out. So $\mathcal B$ measures what the network
# *says*, not whether it is right.
#
# For the losses we use it has a familiar name. For squared error it is $\frac12\|f - f^\circ\|^2$, straight from [8].
# Softmax cross-entropy is $\ell = \log\sum_k e^{f_k} - f_y$ with the gradient $p - e_y$, so
#
# $$\mathcal B = \log\sum_k e^{f_k} - \log\sum_k e^{f_k^\circ} - p^{\circ\top}(f - f^\circ).$$
#
# Since the $p_c^\circ$ add up to one, the two logarithms can go inside a sum over classes, where
# $f_c - \log\sum_k e^{f_k} = \log p_c$ is waiting for them:
#
# $$\mathcal B = \sum_c p_c^\circ\Big[\big(f_c^\circ - \log\sum_k e^{f_k^\circ}\big) - \big(f_c - \log\sum_k e^{f_k}\big)\Big] = \sum_c p_c^\circ\log\frac{p_c^\circ}{p_c} = \mathrm{KL}(p^\circ\,\|\,p).$$


# %%
def bregman(f, f0, y):
    """[8] for cross-entropy, per example (N,), by definition."""
    value, back = torch.func.vjp(lambda out: F.cross_entropy(out, y, reduction="none"), f0)
    (at_f0,) = back(torch.ones_like(value))  # (N, 10), the slope of the tangent
    return F.cross_entropy(f, y, reduction="none") - value - (at_f0 * (f - f0)).sum(1)


# %% [markdown]
# We try it on the network's logits, against others at random.

# %%
says = logits(trained, X)  # f° of every example
other = says + torch.randn(says.shape, generator=torch.Generator().manual_seed(1))
kl = (says.softmax(1) * (says.log_softmax(1) - other.log_softmax(1))).sum(1)
assert torch.allclose(bregman(other, says, y), kl), "KL(p° ‖ p): the trained distribution comes first"
assert torch.allclose(bregman(other, says, y), bregman(other, says, (y + 1) % 10)), "the label drops out"

# %% [markdown]
# ### The proximal Bregman objective
#
# Now the objective. The divergence, averaged over the training data, holds the outputs; a penalty on the distance,
# called *proximity*, holds the weights; $\varepsilon$ pulls.
#
# $$\theta^\circ(\varepsilon) = \arg\min_\theta\; \underbrace{\frac1N\sum_{j=1}^N \mathcal B\big(f_j(\theta), f_j(\theta^\circ)\big) + \frac\lambda2\|\theta-\theta^\circ\|^2 + \varepsilon\,\ell_n(\theta)}_{\mathrm{PBO}(\theta)} \qquad [7]$$
#
# Its response function is called the **proximal Bregman response function**, PBRF. Go through the table of notebook 01
# with it.
#
# **Step 1, the gradient at $\theta^\circ$ for $\varepsilon = 0$.** By the chain rule it is
# $\frac1N\sum_j J_j^\top\,\partial\mathcal B/\partial f + \lambda(\theta-\theta^\circ)$. At $\theta^\circ$ the second
# term is zero, and $\partial\mathcal B/\partial f$ is zero because $\mathcal B$ has slope zero there. So $\theta^\circ$
# is a stationary point *exactly*, whether or not training had converged. Repaired.
#
# **Step 2, the Hessian at $\theta^\circ$.** Differentiate once more, product rule as before:
#
# $$\nabla^2\,\mathrm{PBO}(\theta^\circ) = \frac1N\sum_j\Big(J_j^\top\frac{\partial^2\mathcal B}{\partial f\,\partial f^\top}J_j + \sum_c\underbrace{\frac{\partial\mathcal B}{\partial f_c}}_{=\,0}\nabla^2f_{j,c}\Big) + \lambda I = G + \lambda I.$$
#
# There it is. The network's own curvature, the part that made $H$ indefinite, is multiplied by the slope of
# $\mathcal B$, and that is zero. What is left is the curvature of $\mathcal B$ in the outputs, which is $H_{\rm out}$.
# **$G$ is not an approximation to $H$ here: it is the exact Hessian of another objective.** And $\lambda$ is not a
# numerical trick: it is the strength of the proximity term.
#
# **Step 3.** $G + \lambda I$ is positive definite for every $\lambda > 0$, so $\theta^\circ$ is a strict local minimum.
# Repaired.
#
# **Step 4** is not repaired. For a network the PBO is not convex, and the response we follow is a *local* minimum, the
# one that starts at $\theta^\circ$.
#
# **Step 5.** The implicit function theorem applies, with $G + \lambda I$ where $H$ was, and the chain rule [5] carries
# it to any $m$:
#
# $$\left.\frac{d\theta^\circ}{d\varepsilon}\right|_{\varepsilon=0} = -(G+\lambda I)^{-1}\,\nabla\ell_n(\theta^\circ), \qquad [9]$$
#
# $$\mathcal I_m(n) = -\nabla m(\theta^\circ)^\top(G+\lambda I)^{-1}\,\nabla\ell_n(\theta^\circ).$$
#
# This is the influence that the rest of the course computes. Two questions about $\lambda$ remain.
#
# **One λ for each layer.** Nothing asks for the same firmness everywhere. Layers differ in scale, and `inflib` gives
# each layer $l$ its own $\lambda_l$, by default a tenth of the layer's mean eigenvalue. The proximity term is then
#
# $$\sum_l\frac{\lambda_l}2\,\|\theta_l-\theta_l^\circ\|^2,$$
#
# and $\lambda I$ becomes a diagonal matrix with $\lambda_l$ at the weights of layer $l$. Every step above stands.
#
# **Where did the weight decay go?** The training objective has a penalty $\frac\alpha2\|\theta\|^2$. Treat it as the
# losses were treated: take its gap to its own tangent at $\theta^\circ$. The gap is
# $\frac\alpha2\|\theta-\theta^\circ\|^2$, a proximity term with $\lambda=\alpha$. So the decay is *part of λ*: our
# $\lambda = 0.01$ below is the 0.005 of training and as much again. Therefore no $\alpha$ is added to $G$, and nothing
# is counted twice.
#
# Check the Hessian, on the network at its unfinished weights: autograd twice through the PBO, along a direction $v$,
# against $Gv + \lambda v$; then with one λ for each layer.


# %%
def pbo(theta, x, label, epsilon, lam):
    """The proximal Bregman objective [7] for one extra example (x, label); lam a number, or one for each weight."""
    before, now = says.log_softmax(1), logits(theta, X).log_softmax(1)
    divergence = (before.exp() * (before - now)).sum(1).mean()
    return divergence + (lam / 2 * (theta - trained).square()).sum() + epsilon * loss(theta, x, label)


# %%
lam = 0.01
by_layer = torch.cat([torch.full((16 * 197,), 0.01), torch.full((10 * 17,), 0.03)])  # hidden1, out
for strength in (lam, by_layer):
    flat, curve = jvp(lambda t, s=strength: grad(pbo)(t, X[0], y[0], 0.0, s), (trained,), (any_v,))
    assert flat.norm() < 1e-12, "at ε = 0 the trained weights are stationary, finished or not"
    assert torch.allclose(curve, G @ any_v + strength * any_v, atol=1e-10), "is f° held constant when differentiating?"

# %% [markdown]
# And the two weights from the beginning, stopped early at (0.6, 0.5), with $\lambda = 0.1$. We follow the minimum of
# their PBO as $\varepsilon$ grows, by Newton's method. The figure after that has, on the left, the training loss, on
# whose slope the point lies; on the right, the PBO with $\varepsilon = 0$. Contour lines stand at the same values in both.
# Look for the bowl.


# %%
def tiny_pbo(theta, epsilon=0.0, lam=0.1):
    far = 0.5 * (output(theta) - output(stopped)) ** 2 + lam / 2 * (theta - stopped).square().sum()
    return far + epsilon * example_loss(theta, targets[2])


def settle(theta, epsilon):
    """Newton's method from θ to the minimum of the tiny PBO."""
    for _ in range(6):
        theta = theta - torch.linalg.solve(hessian(tiny_pbo)(theta, epsilon), grad(tiny_pbo)(theta, epsilon))
    return theta


# %%
tangent = -torch.linalg.solve(torch.outer(v, v) + 0.1 * torch.eye(2), push)  # [9] for the third example
quotient = (settle(stopped, 1e-4) - settle(stopped, -1e-4)) / 2e-4
assert torch.allclose(quotient, tangent, rtol=1e-4), "the response's slope is [9]: is λ the same in both?"

path = [stopped]
for epsilon in torch.linspace(0.05, 0.6, 12):
    path.append(settle(path[-1], epsilon))
assert grad(tiny_pbo)(path[-1], 0.6).norm() < 1e-10, "Newton has not found the minimum of the PBO"

# %% [markdown]
# The slope of the PBO's response, found by minimising it twice, is [9]. Here is the picture.

# %%
across, up, points = grid(*[torch.linspace(0.01, 1.8, 91)] * 2)
levels = torch.logspace(-3, 0.5, 15).tolist()
fig, axes = plt.subplots(1, 2, figsize=(8.6, 4), sharex=True, sharey=True)
for ax, function, title in zip(axes, (mean_loss, tiny_pbo), ("training loss", "PBO at ε = 0"), strict=True):
    ax.contour(across, up, vmap(function)(points).reshape(91, 91), levels=levels, colors=plots.GREY, linewidths=0.5)
    ax.plot(*stopped, "o", color=plots.BLUE, label="where training stopped")
    ax.set(title=title, xlabel="first weight θ₁", ylabel="second weight θ₂", ylim=(0, 1.8))
axes[0].plot(across[0], 1 / across[0], color=plots.BLUE, label="minima")
axes[1].plot(*torch.stack(path).T, color=plots.ORANGE, label="minima of the PBO, ε from 0 to 0.6")
axes[1].plot(*torch.stack([stopped, stopped + 0.6 * tangent]).T, "--", color=plots.GREY, label="influence [9]")
for ax in axes:
    ax.legend(loc="upper right", frameon=True)
assert (points[vmap(tiny_pbo)(points).argmin()] - stopped).norm() < 0.03, "the bowl is lowest where training stopped"

# %% [markdown]
# On the left the point lies on a slope between the saddle at the origin and the valley; on the right it is at the
# bottom of a bowl. As $\varepsilon$ grows the minimum wanders off towards larger outputs, and the influence [9] is the
# tangent of its path, by now a familiar picture. The path falls short of the tangent: the pulled example's own
# curvature joins in, the leverage of notebook 01 with the other sign.
#
# ### Nothing is lost where the old question made sense
#
# Is the PBO a different question for ridge and logistic regression, whose refits notebook 01 predicted so well? It is
# the same. If $f_j$ is linear in $\theta$, then $\mathcal B(f_j(\theta), f_j(\theta^\star))$ is the gap between
# $\ell_j$ and its tangent *as functions of $\theta$*. The proximity term with $\lambda = \alpha$ is the gap of the
# penalty, and gaps add up as their functions do. So the PBO at $\varepsilon = 0$ is the gap between the whole training
# objective $\mathcal J$ and its tangent at $\theta^\star$. That tangent is flat, since $\theta^\star$ is the minimum:
# the PBO equals $\mathcal J(\theta) - \mathcal J(\theta^\star)$ for every $\theta$. Add $\varepsilon\ell_n$, and the
# minimum is notebook 01's, for every $\varepsilon$. A check with a softmax regression on our 300 digits:

# %%
from inflib.validation import fit_linear

alpha = 0.05
star = fit_linear(CrossEntropy(), inputs, y, alpha).theta[0]  # (10, 197), the minimum


def objective(W):
    return F.cross_entropy(inputs @ W.T, y) + alpha / 2 * W.square().sum()


W = star + 0.1 * torch.randn(star.shape, generator=torch.Generator().manual_seed(2))
proximal = bregman(inputs @ W.T, inputs @ star.T, y).mean() + alpha / 2 * (W - star).square().sum()
assert torch.isclose(objective(W) - objective(star), proximal), "equal for a linear model at its minimum, λ = α"
print(f"objective above its minimum: {objective(W) - objective(star):.5f}; PBO: {proximal:.5f}")

# %% [markdown]
# ## Does the prediction come true?
#
# The PBO is an objective like any other, so it can be minimised, with no approximation, and the result compared with
# [9]. We take 24 training examples, one at a time, with $\varepsilon = 1/N$: the example counts twice. The iteration is
# Newton's with one economy: it keeps the matrix $P = (G+\lambda I)^{-1}$ of the starting point, and halves the step
# where the objective would not fall. At $\theta^\circ$ the gradient is $\varepsilon\nabla\ell_n$, so the *first* step
# is $-\varepsilon P\,\nabla\ell_n$. That is the influence prediction. **The influence function is the first Newton
# step; the response is where the steps end.**

# %%
N = len(X)
which = torch.arange(0, N, N // 24)[:24]


def minimise(which, epsilon, lam, P, steps=200):
    """The PBOs of several examples at once: predicted and actual changes of θ, and the largest gradient left."""
    value, slope = (vmap(function, (0, 0, 0, None, None)) for function in (pbo, grad(pbo)))
    theta, data = trained.expand(len(which), -1), (X[which], y[which], epsilon, lam)
    down = -slope(theta, *data)  # (24, 3322); here, at the start, it is −ε ∇ℓ_n
    predicted, start = down @ P, down.norm(dim=1)
    for _ in range(steps):
        move, now, size = down @ P, value(theta, *data), torch.ones(len(which), 1)
        while (worse := value(theta + size * move, *data) > now + 1e-15).any():
            size[worse] /= 2  # this step would climb
        theta = theta + size * move
        down = -slope(theta, *data)
        if (down.norm(dim=1) < 1e-4 * start).all():
            break
    return predicted, theta - trained, (down.norm(dim=1) / start).max()


def inverse(lam):
    return torch.cholesky_inverse(torch.linalg.cholesky(G + lam * torch.eye(len(G))))  # symmetric, positive definite


# %%
P = inverse(lam)
predicted, actual, left = minimise(which, 1 / N, lam, P)
assert left < 1e-4, "the PBO is not minimised: the comparison would measure the optimiser"
assert torch.allclose(predicted, -gradients[which] @ P / N, atol=1e-12), "the first step is −ε (G + λI)⁻¹ ∇ℓ_n"

# %% [markdown]
# The gradient has come down ten thousand times at least, for each of the 24, so these are minima. What do the new
# weights do to queries? As measurements, the margins of fifty query digits. The prediction is [6] of notebook 01 at
# $\varepsilon=+1/N$: what the margin *gains* if the example is counted twice, to first order its contribution. The
# actual gain needs no theory.


# %%
def margins(theta):
    z, c = logits(theta, Xq[::10]), yq[::10, None]
    return z.gather(1, c).squeeze(1) - z.scatter(1, c, -torch.inf).logsumexp(1)  # (50,)


asked = jacrev(margins)(trained)  # (50, 3322): the queries' ∇m


def compare(predicted, actual):
    """Predicted and actual gains of every query's margin, (50, 24), their correlation and the slope through 0."""
    guess, truth = asked @ predicted.T, (vmap(margins)(trained + actual) - margins(trained)).T
    slope = (guess * truth).sum() / guess.square().sum()
    return guess, truth, torch.corrcoef(torch.stack([guess.flatten(), truth.flatten()]))[0, 1].item(), slope.item()


# %%
guess, truth, alike, size = compare(predicted, actual)
by_query = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(guess, truth, strict=True)])
print(f"ε = 1/N: correlation {alike:.3f} over all pairs, {by_query.mean():.3f} for the mean query; slope {size:.2f}")
assert alike > 0.9, "do the minimised objective and the prediction use the same λ and ε?"
assert by_query.mean() > 0.9, "high over all pairs, low by query: only the examples' sizes are right"

# %% [markdown]
# For a network in which steps 1 and 3 of notebook 01's table failed, correlations are nearly one. (It is one network from
# one training; the 24 examples and 50 queries are what was varied.) The slope is not, though: the
# actual gains are smaller than predicted. Is that the finite step? If so, a smaller $\varepsilon$ must mend it. Look in
# the figure for the cloud turning onto the identity line.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
sizes = []
for ax, times in zip(axes, (1.0, 0.1), strict=True):
    steps = (predicted, actual) if times == 1 else minimise(which, times / N, lam, P)[:2]
    guess, truth, alike, size = compare(*steps)
    plots.against(ax, guess, truth, what="gain of a query's margin (nats)")
    ax.set_title(f"ε = {times:.1f}/N: correlation {alike:.3f}, slope {size:.2f}")
    assert alike > 0.9, "both should correlate"
    sizes.append(size)
assert abs(sizes[1] - 1) < 0.1 < abs(sizes[0] - 1), "towards ε = 0 the tangent is the curve"

# %% [markdown]
# At a tenth of the step, the points are nearly on the line. So [9] is the right tangent, and at $\varepsilon = 1/N$ the
# network's response has already bent away from it. The reason should be that of the ridge: counted twice, an example adds
# its own curvature to $G + \lambda I$, and the response falls short by something like $1/(1+h)$. Exercise 4 puts that to
# the test.
#
# The same minimisation is [`pbrf.pbrf`](../inflib/validation/pbrf.py) in `inflib.validation`, for any model and with
# one damping per layer. It uses another method (L-BFGS, in coordinates in which the objective is rounder), and should
# arrive at the same margins. We give four of the 24 to both, with the two dampings of above.

# %%
from inflib.validation import pbrf

training, queries, four = [(X, y)], [(Xq[::10], yq[::10])], which[:4]
damping = {"hidden1": 0.01, "out": 0.03}
theirs = pbrf(model, CrossEntropy(), training, queries, four.tolist(), damping, measurement="margin", progress=False)
_, ours, _ = minimise(four, 1 / N, by_layer, inverse(by_layer))
margin_gains = (vmap(margins)(trained + ours) - margins(trained)).T  # (50, 4)
apart = (theirs.change - margin_gains).norm() / margin_gains.norm()
assert apart < 0.01, "two minimisers of one objective; is ε = 1/N, and the λ of each layer, the same in both?"

# %% [markdown]
# ### Only with the right matrix
#
# Would another matrix have done as well? We predict the same response three times: with $G$, with the Hessian in its
# place, and with no matrix at all. (The last is the mere product of two gradients, on a scale of its own, so only its
# correlation counts.) All have $\varepsilon = 1/N$ and the same $\lambda$. The smallest eigenvalue of $H$ is −0.044, so
# $\lambda = 0.01$ lies below the pole, where $H$ has no chance. To be fair to it, we go on to $\lambda = 0.1$ and 1,
# above the pole, each against the response *at that* $\lambda$.

# %%
rivals = {0.01: actual} | {strength: minimise(which, 1 / N, strength, inverse(strength))[1] for strength in (0.1, 1.0)}
print("    λ   correlation (and slope) with G    with H            gradients alone")
for strength, response in rivals.items():
    row = []
    for M in (G, H):
        row += compare(-torch.linalg.solve(M + strength * torch.eye(len(M)), gradients[which].T).T / N, response)[2:]
    row.append(compare(-gradients[which], response)[2])
    print("{:5g} {:19.3f} ({:.2f}) {:17.3f} ({:.2f}) {:18.3f}".format(strength, *row))
    assert row[0] > max(row[2], row[4]), "G is this objective's own Hessian; were H and G swapped?"

# %% [markdown]
# Below its pole the Hessian does no better than no matrix at all. The usual damping, around 0.001 here, lies further
# below it still; there 15 of 300 examples were their own opponents. Above the pole the Hessian is respectable, and less
# well correlated than $G$ both times. In size it is nearer than $G$ at $\lambda=0.1$, and further off at 1. The
# test does not say that $G$ is a better matrix for every purpose. It says that $G$ belongs to *this* objective, as
# $H_\alpha$ belonged to that of notebook 01.

# %% [markdown]
# ## What λ does
#
# So far $\lambda$ looked like something to be kept small. It is part of the question: how firmly are the weights held?
# In the eigenbasis of $G$, [9] divides each component by $\mu + \lambda$. Directions with $\mu \gg \lambda$ are decided
# by the data and hardly notice; directions with $\mu \ll \lambda$ are held by the proximity term. More $\lambda$ means
# a smaller answer, and a simpler one: for $\lambda$ above all eigenvalues, $(G+\lambda I)^{-1} \approx I/\lambda$ and
# the score is the gradient product.
#
# We minimise the PBO again for several $\lambda$, now with twelve of the examples. Look at three columns: how large the
# response is, how well it is predicted, and how like a gradient product the prediction has become.

# %%
dot = -(asked @ gradients[which[::2]].T).flatten()
table = {}
for strength in (0.003, 0.03, 0.3, 3.0):
    guess, truth, alike, size = compare(*minimise(which[::2], 1 / N, strength, inverse(strength))[:2])
    like_dot = torch.corrcoef(torch.stack([guess.flatten(), dot]))[0, 1].item()
    table[strength] = *(part.square().mean().sqrt().item() for part in (guess, truth)), alike, size, like_dot
columns = list(zip(*table.values(), strict=True))
assert list(columns[1]) == sorted(columns[1], reverse=True), "a firmer hold, a smaller response"
assert list(columns[4]) == sorted(columns[4]), "towards the identity as λ grows"
assert min(columns[2]) > 0.9, "prediction and response at the same λ should agree at every λ"

# %%
print("    λ     predicted gain     actual gain   correlation   slope   like a gradient product")
for strength, row in table.items():
    print(f"{strength:5g} {row[0]:18.4f} {row[1]:15.4f} {row[2]:13.3f} {row[3]:7.2f} {row[4]:25.2f}")

# %% [markdown]
# The same as a picture. Watch whether the two curves on the left stay together, and what the three on the right tend
# to.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
for column, style, name in ((0, "o-", "predicted [9]"), (1, "s--", "PBO minimised")):
    axes[0].loglog(list(table), columns[column], style, label=name)
axes[0].set(xlabel="damping λ", ylabel="root mean square gain of margin (nats)")
for column, style, name in ((2, "o-", "correlation"), (3, "s-", "slope"), (4, "^-", "like a gradient product")):
    axes[1].semilogx(list(table), columns[column], style, label=name)
axes[1].axhline(1, color=plots.GREY, linestyle="--", linewidth=0.8)
axes[1].set(xlabel="damping λ", ylabel="correlation or slope", ylim=(0, 1.1))
for ax in axes:
    ax.legend()
assert abs(columns[3][-1] - 1) < abs(columns[3][0] - 1), "the prediction's size is best where the response is small"

# %% [markdown]
# Damping moves *both*, the prediction and what it predicts. They are closest where $\lambda$ is large and the question
# nearly trivial; at the smallest $\lambda$ the actual gain is two thirds of the predicted one. So the agreement with the PBRF cannot choose a damping for us, and a comparison of two
# methods at two different dampings compares two questions. **From here on, every comparison gives all methods the same
# number for each layer.**
#
# ## What has been bought, and what not
#
# We changed the question until it had an answer. Three things in the new question differ from "what if I retrained
# without this example?":
#
# - **It starts from the trained weights**, and stays near them, where retraining starts anew, with other random
#   numbers.
# - **It is local**: the proximity term is a leash, and the training data are asked to hold the *predictions* of this
#   network, not the labels.
# - **It does not continue training.** That is what removed the slope at the point where training stopped.
#
# Bae et al. (2022) measured these apart from one another. They put most of the gap between influence and retraining
# down to the three of them, and less to the straight line in place of a curve. Whether one wants to know the response
# or the retraining depends on the use; notebook 09 measures both. What we have now is a target that is well defined for
# every network, trained to the end or not, and a formula whose only ingredient is $G + \lambda I$.
#
# That matrix had 3322 × 3322 entries here. The next notebooks ask what it is made of (03), and how to invert it when
# the network has a billion weights and the matrix $10^{18}$ entries (04 and 05).
#
# ## Summary
#
# The Hessian of a network is singular, because different weights compute the same function, and indefinite, because the
# network itself is curved and its residuals are not zero; inverting it turns some effects round. The proximal Bregman
# objective replaces the training loss by its gap to its own tangent and adds $\frac\lambda2\|\theta-\theta^\circ\|^2$:
# it is stationary wherever training stopped, and its Hessian there is exactly $G+\lambda I$. The influence
# $-\nabla m^\top(G+\lambda I)^{-1}\nabla\ell_n$ is the slope of its response, as minimising it confirmed for one network: nearly
# perfect correlation at one full count of an example, right in size too for a tenth. For linear models at their optimum
# it is the old question. The damping $\lambda$, weight decay included, is part of the question and not of its numerics.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. Another loss (easy, 10 minutes)
#
# Counts are modelled with the Poisson loss $\ell(f, y) = e^f - y f$. Write its divergence [8]. Why does it need no $y$?

# %% jupyter={"source_hidden": true}
from inflib.lab import exercise


@exercise
def check_poisson_bregman(answer):
    f, f0 = torch.linspace(-1, 2, 7), torch.linspace(0.8, -0.4, 7)
    came, gaps = answer(f, f0), []
    for label in (0.0, 3.0):
        tilt = grad(lambda t, label=label: (t.exp() - label * t).sum())(f0)
        gaps.append((f.exp() - label * f) - (f0.exp() - label * f0) - tilt * (f - f0))
    swapped = f0.exp() - f.exp() - f.exp() * (f0 - f)
    assert torch.allclose(gaps[0], gaps[1]), "two labels have one divergence"
    assert came.shape == f.shape, f"shape {tuple(came.shape)}, expected one number for each entry, {tuple(f.shape)}"
    assert not torch.allclose(came, swapped), "swapped: the tangent touches at f0, the trained output"
    assert not torch.allclose(came, f.exp() - f0.exp()), (
        "that is a difference of losses; subtract the tangent's rise too"
    )
    assert torch.allclose(came, gaps[0]), "not the gap: value minus value minus slope times distance"
    return f"right; smallest gap: {came.min():.4f}"


# %%
def poisson_bregman(f, f0):
    """The divergence from f0 to f, one number for each entry of f."""
    return ...  # your answer


check_poisson_bregman(poisson_bregman)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The part $-yf$ is a straight line in $f$, equal to its own tangent, so it drops out. What is left is the gap of $e^f$.
#
# ```python
# def poisson_bregman(f, f0):
#     return f.exp() - f0.exp() - f0.exp() * (f - f0)
#
#
# check_poisson_bregman(poisson_bregman)
# ```
# </details>

# %% [markdown]
# ### 2. Two weights by hand (medium, 15 minutes, pencil and paper)
#
# The two-weight network at $\theta^\circ=(0.6,\,0.5)$. Prove that the influence of an example with the target $y$ on
# the output $f$ is
#
# $$\mathcal I_f = (y-f)\,\frac{\|v\|^2}{\|v\|^2+\lambda},$$
#
# by [9] with $G=vv^\top$. (What does $G+\lambda I$ do to the vector $v$?) Then the number for $y=1.5$ and
# $\lambda=0.1$. What does it become for $\lambda\to0$, and why is that what notebook 01's mean would say?


# %% jupyter={"source_hidden": true}
@exercise
def check_by_hand(answer):
    assert abs(answer + 1.2 * 0.61 / 0.71) > 1e-3, "the sign: ∇ℓ = (f − y) v, and [9] has a minus of its own"
    assert abs(answer - 1.2) > 1e-3, "that is the limit λ → 0, where the data alone decide"
    assert abs(answer - 1.2 * 0.61 / 0.1) > 1e-2, "divided by λ alone; along v the matrix is ‖v‖² + λ"
    assert abs(answer - 1.2 / 0.71) > 1e-3, "a factor ‖v‖² is missing: v stands on both sides of the inverse"
    assert abs(answer - 1.2 * 0.61 / 0.71) < 1e-3, "not the number: y − f is 1.2, and ‖v‖² = 0.5² + 0.6²"
    return "right: damping leaves 86 per cent of the answer"


# %%
by_hand = ...  # your number

check_by_hand(by_hand)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $(vv^\top+\lambda I)\,v = (\|v\|^2+\lambda)\,v$: $v$ is an eigenvector, so the inverse divides it by
# $\|v\|^2+\lambda$. With $\nabla f=v$ and $\nabla\ell=(f-y)\,v$, [9] gives
# $-(f-y)\,v^\top v/(\|v\|^2+\lambda)$. Here $\|v\|^2=0.61$ and $y-f=1.2$. For $\lambda\to0$ it is $y-f$: the output
# follows the targets as the mean of the inks did.
#
# ```python
# by_hand = 1.2 * 0.61 / 0.71
#
# check_by_hand(by_hand)
# assert torch.isclose(v @ tangent, torch.tensor(by_hand)), "and by the solve of above"
# ```
# </details>

# %% [markdown]
# ### 3. A network without curvature (medium, 15 minutes)
#
# There is another way to get $G$: replace the *network* by its tangent at $\theta^\circ$,
# $f(\theta^\circ) + J(\theta-\theta^\circ)$, and keep the training loss. Write it for the two-weight network at
# `stopped`. Its Hessian should be $G$, at every point. Is its gradient at `stopped` zero?


# %% jupyter={"source_hidden": true}
@exercise
def check_linearised_loss(answer):
    here, away = stopped, torch.tensor([1.7, -0.3])
    assert torch.allclose(answer(here), mean_loss(here)), "at θ° the tangent touches: same output, same loss"
    assert not torch.allclose(hessian(answer)(here), hessian(mean_loss)(here)), "the network is still curved"
    assert torch.allclose(hessian(answer)(here), torch.outer(v, v)), "the Hessian is not v vᵀ: is v taken at θ°?"
    assert torch.allclose(hessian(answer)(away), torch.outer(v, v)), "v must not depend on θ: it is the slope at θ°"
    return f"right; its gradient is that of the training loss, not zero: {grad(answer)(here).norm():.3f}"


# %%
def linearised_loss(theta):
    """The mean of ½ (linearised output − y)² over `targets`; v is the output's gradient at `stopped`."""
    return ...  # your answer


check_linearised_loss(linearised_loss)

# %% [markdown]
# <details><summary>Solution</summary>
#
# A linear output has no second derivative, so only $J^\top H_{\rm out}J$ is left. The gradient stays $J^\top$ times the
# residual, which the PBO removes and linearising does not: one needs the Bregman divergence for that.
#
# ```python
# def linearised_loss(theta):
#     outputs = output(stopped) + v @ (theta - stopped)
#     return (0.5 * (outputs - targets) ** 2).mean()
#
#
# check_linearised_loss(linearised_loss)
# ```
# </details>

# %% [markdown]
# ### 4. Leverage once more (harder, 25 minutes)
#
# In notebook 01 dividing by $1 - h$ repaired the size. Do the same here, for an example that is counted *twice*: use
# $G + \lambda I + \varepsilon J_n^\top H_{\rm out}J_n$ as the Hessian. Do not invert a new matrix. With
# $P=(G+\lambda I)^{-1}$ and $J_n^\top H_{\rm out}J_n = E^\top E$ ($E$ of ten rows, $\sqrt{p_c}\,(e_c-p)^\top J_n$),
#
# $$(P^{-1} + \varepsilon E^\top E)^{-1} = P - \varepsilon P E^\top(I + \varepsilon EPE^\top)^{-1}EP .$$


# %% jupyter={"source_hidden": true}
@exercise
def check_corrected(answer):
    came = torch.stack([answer(int(n)) for n in which[:8]])
    *_, alike_now, size_now = compare(came, actual[:8])
    *_, alike_plain, size_plain = compare(predicted[:8], actual[:8])
    assert size_now > 0, "the sign: more weight goes downhill on the example's loss"
    assert abs(size_now - size_plain) > 1e-6, "that is the plain prediction; subtract the second term of the formula"
    assert size_now < 3, "far too short: is ε in both places, or is the example counted N times?"
    assert abs(size_now - 1) < abs(size_plain - 1) / 2, "hardly better: is √p outside the bracket of E?"
    J, p_n = jacrev(lambda t: logits(t, X[which[0]]))(trained), logits(trained, X[which[0]]).softmax(0)
    held = J.T @ (p_n * (J @ came[0]) - p_n * (p_n @ (J @ came[0]))) / N  # ε Jᵀ H_out J Δ
    left = (came[0] + P @ held - predicted[0]).norm() / predicted[0].norm()
    assert left < 1e-6, "the size fits by accident: this does not solve (G + λI + ε Jᵀ H_out J) Δ = −ε ∇ℓ"
    return f"right; slope {size_plain:.2f} → {size_now:.2f}, correlation {alike_plain:.3f} → {alike_now:.3f}"


# %%
def corrected(n):
    """The change of θ (3322,) at ε = 1/N, from P, X, gradients, logits, trained and N."""
    return ...  # your answer


check_corrected(corrected)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Apply the formula to $-\varepsilon\nabla\ell_n$: the first term is the plain prediction, the second takes off what the
# example's own curvature resists.
#
# ```python
# def corrected(n):
#     J = jacrev(lambda t: logits(t, X[n]))(trained)  # (10, 3322)
#     p = logits(trained, X[n]).softmax(0)
#     E = p.sqrt()[:, None] * (torch.eye(10) - p) @ J  # row c is √p_c (e_c − p)ᵀ J
#     step = -P @ gradients[n] / N
#     half = E @ P  # (10, 3322)
#     return step - half.T @ torch.linalg.solve(torch.eye(10) + half @ E.T / N, E @ step) / N
#
#
# check_corrected(corrected)
# ```
# </details>

# %% [markdown]
# ## References
#
# - R. Grosse et al., *Studying Large Language Model Generalization with Influence Functions*, 2023, arXiv 2308.03296.
#   Equations [7] to [9].
# - J. Bae, N. Ng, A. Lo, M. Ghassemi, R. Grosse, *If Influence Functions are the Answer, Then What is the Question?*,
#   NeurIPS 2022, arXiv 2209.05364: the proximal Bregman response function, and what separates it from retraining.
# - J. Martens, *New Insights and Perspectives on the Natural Gradient Method*, JMLR 2020, arXiv 1412.1193: the
#   Gauss-Newton Hessian and its relatives.
# - L. Bregman, *The relaxation method of finding the common point of convex sets*, 1967: the divergence.
# - S. Basu, P. Pope, S. Feizi, *Influence Functions in Deep Learning Are Fragile*, ICLR 2021, arXiv 2006.14651: the
#   failures, observed on larger networks.
