# %% [markdown]
# # 02 · Why not just invert the Hessian?
#
# **The question.** Notebook 01 ended with $-\nabla f^\top H^{-1}\nabla\ell_m$, and with refits that agreed with it. A
# neural network has a Hessian too. Why not invert it and be done? Because training is never quite finished, because
# there is no single minimum, and because the Hessian of a network is singular and has negative eigenvalues. This
# notebook shows each of these happen, and derives the question that has an answer nevertheless.
#
# **What you need to know.** Notebook 01, in particular its table of conditions; eigenvalues; what a Kullback-Leibler
# divergence is. Numbers in brackets are the equations of Grosse et al. 2023.
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
# The smallest network with a hidden layer has two weights, $f = a\,b\,x$: multiply by $a$, then by $b$. Its whole loss
# surface can be drawn. The inputs are all $x = 1$, so the output is $ab$; three training examples have the targets ½, 1
# and 1½; the loss is $\ell_n = \frac12(ab - y_n)^2$. The mean loss only cares how far $ab$ is from the mean target
# $\bar y = 1$.

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
sigma = torch.linalg.eigvalsh(hessian(mean_loss)(minimum))
print(f"at the minimum, the eigenvalues of the Hessian are {sigma[0].abs():.2f} and {sigma[1]:.2f}")
assert grad(mean_loss)(minimum).norm() < 1e-12, "a b must equal the mean target, 1"
assert sigma[0].abs() < 1e-12, "one eigenvalue should be zero: is the Hessian taken at the minimum?"

# %% [markdown]
# The point (2, ½) is a minimum, and one eigenvalue of its Hessian is zero: $H$ is **singular**. Derive it. With
# $v = (b, a)$, the gradient of the output $ab$,
#
# $$\nabla\ell_n = (ab-y_n)\,v, \qquad \nabla^2\ell_n = v v^\top + (ab - y_n)\begin{pmatrix}0&1\\1&0\end{pmatrix}.$$
#
# At a minimum $ab = \bar y$, so the second term averages to zero and $H = vv^\top$, a matrix of rank one. Its null
# vector is $(a, -b)$: make $a$ larger and $b$ smaller by the same share, and the product stays as it is. No data can
# object, because the network computes the same function. Every ReLU unit of a network brings such a direction with it
# (its incoming weights up, its outgoing weights down), and any network has more of them wherever it has more weights
# than its data can hold in place.
#
# Look in the figure for the valley of minima $ab = 1$, for the null direction along it, and for where the valley goes
# when the third example is counted more.

# %%
null = torch.tensor([minimum[0], -minimum[1]])
assert (hessian(mean_loss)(minimum) @ null).norm() < 1e-12, "the null vector is (a, −b), along the valley"

a, b = torch.meshgrid(torch.linspace(0.2, 3.2, 121), torch.linspace(0.05, 2.0, 121), indexing="xy")
values = vmap(mean_loss)(torch.stack([a.flatten(), b.flatten()], dim=1)).reshape(a.shape)
epsilon = 0.5
moved = (targets.mean() + epsilon * targets[2]) / (1 + epsilon)  # the weighted mean, as in notebook 01

# %%
fig, ax = plt.subplots(figsize=(6.4, 4.2))
ax.contour(a, b, values, levels=torch.logspace(-3, 1, 14).tolist(), colors=plots.GREY, linewidths=0.5)
ax.plot(a[0], 1 / a[0], color=plots.BLUE, label="minima: ab = 1")
ax.plot(a[0], moved / a[0], "--", color=plots.ORANGE, label="minima when one example counts more")
ax.annotate("", xy=minimum + 0.4 * null, xytext=minimum, arrowprops={"arrowstyle": "->"})
ax.text(2.55, 0.2, "null direction", fontsize=8)
ax.plot(*minimum, "o", color=plots.BLUE)
ax.set(xlabel="first weight a", ylabel="second weight b", ylim=(0.05, 2.0))
ax.legend(loc="upper right")
assert values[(a * b - 1).abs() < 0.01].max() < values[(a * b - 1).abs() > 0.1].min(), "the valley is ab = 1"

# %% [markdown]
# The whole valley moves, as a curve. "Where does the point (2, ½) go?" has no answer: any point of the dashed curve
# is a minimum of the new objective. Step 2 of notebook 01's table needed $H$ invertible, and this is what its failure
# looks like: not one curve $\theta(\varepsilon)$, but infinitely many.
#
# Two remedies suggest themselves. Ask only about $f = ab$, which all the new minima agree on; or pick, of all new
# minima, the nearest one. The second is what a small **damping** does: replace $H$ by $H + \lambda I$. In the
# eigenbasis of $H$, the component of $\nabla\ell_m$ along an eigenvector with eigenvalue $\sigma$ is divided by
# $\sigma + \lambda$. The gradient $\nabla\ell_m$ is a multiple of $v = (b, a)$, which is perpendicular to the null
# direction $(a, -b)$. So nothing is divided by $\lambda$ alone, and as $\lambda \to 0$ what is left is the move
# straight across the valley.

# %%
H = hessian(mean_loss)(minimum)
gradient = grad(example_loss)(minimum, targets[2])
move = -torch.linalg.solve(H + 1e-9 * torch.eye(2), gradient)
assert torch.allclose(move, -torch.linalg.pinv(H) @ gradient, atol=1e-6), "a vanishing damping gives the pseudo-inverse"
assert abs(move @ null) < 1e-6, "the damped step has nothing along the valley: it goes to the nearest new minimum"
print(f"dθ/dε = ({move[0]:.3f}, {move[1]:.3f}),  d(ab)/dε = {grad(output)(minimum) @ move:.3f}")

# %% [markdown]
# The output's slope, 0.5, is right: the target stands out by $y_m - \bar y = 0.5$, as the mean of notebook 01 did. So
# far the damage is small. Singular matrices are the harmless part.
#
# ## A model that is not at its minimum
#
# Now stop training early, at $a = 0.6$, $b = 0.5$. The output, 0.3, is still well below the mean target. Two more
# conditions are gone at once.

# %%
stopped = torch.tensor([0.6, 0.5])
slope, H = grad(mean_loss)(stopped), hessian(mean_loss)(stopped)
sigma = torch.linalg.eigvalsh(H)
print(f"norm of the gradient {slope.norm():.3f}, eigenvalues of H {sigma[0]:.3f} and {sigma[1]:.3f}")
assert slope.norm() > 0.1, "an early stop leaves a slope"
assert sigma[0] < -0.05, "an early stop leaves a negative eigenvalue"

# %% [markdown]
# The gradient is not zero: step 1 fails, and "the minimum near $\theta$" does not exist, as $\theta$ is on a slope. And
# $H$ is **indefinite**: in one direction the surface is curved like a hill. Step 3 fails. The matrix can be inverted
# all the same, nobody stops us, so let us see what formula [5] says about the third example. Its target, 1½, is far
# above the output 0.3. Counting it more should *raise* the output.

# %%
v = grad(output)(stopped)
by_hessian = -v @ torch.linalg.solve(H, grad(example_loss)(stopped, targets[2]))
print(f"d(ab)/dε by the inverse Hessian: {by_hessian:.2f}")
assert by_hessian < 0, "at this point the inverse Hessian turns the effect round"

# %% [markdown]
# It says that the output *falls*, and steeply. The formula solves $H\,d\theta/d\varepsilon = -\nabla\ell_m$, that is,
# it looks for the place where the gradient of the new objective has the same value as before. On a hill one gets there
# by going up. (Newton's method has the same trouble: near a saddle it walks to the saddle.)
#
# Does damping help? Adding $\lambda$ to every eigenvalue makes them positive once $\lambda$ exceeds the most negative
# one. But on the way there, one eigenvalue passes through zero. Look at the figure for what happens at that $\lambda$;
# the second curve uses another matrix, $vv^\top$, of which more below.

# %%
lambdas = torch.logspace(-2, 1.5, 400)
g = grad(example_loss)(stopped, targets[2])
G = torch.outer(v, v)
by_H = torch.stack([-v @ torch.linalg.solve(H + lam * torch.eye(2), g) for lam in lambdas])
by_G = torch.stack([-v @ torch.linalg.solve(G + lam * torch.eye(2), g) for lam in lambdas])
assert by_H.min() < -25, "left of the pole, H + λI turns the effect round"
assert by_H.max() > 25, "H + λI has a pole where an eigenvalue passes through zero"
assert (by_G > 0).all(), "v vᵀ + λI is positive definite: the right sign at every λ"
assert (by_G.diff() < 0).all(), "more damping, a smaller answer"

# %%
fig, ax = plt.subplots()
drawn = by_H.masked_fill(by_H.abs() > 25, torch.nan)  # or the two branches would be joined
ax.semilogx(lambdas, drawn, label="(H + λI)⁻¹")
ax.semilogx(lambdas, by_G, label="(G + λI)⁻¹ with G = v vᵀ")
ax.axvline(-sigma[0], color=plots.GREY, linestyle=":", label="λ = − smallest eigenvalue of H")
ax.set(xlabel="damping λ (units of the eigenvalues)", ylabel="predicted d(ab)/dε", ylim=(-20, 20))
ax.legend()
assert lambdas[by_H.abs().argmax()].sub(-sigma[0]).abs() < 0.01, "the pole is where λ cancels the eigenvalue"

# %% [markdown]
# With the Hessian, the prediction is negative for small $\lambda$, shoots to infinity where $H + \lambda I$ becomes
# singular, and is reasonable only to the right of the pole, where $\lambda$ is as large as the curvature itself. With
# $G = vv^\top$ nothing of the kind happens: the right sign everywhere, and a damping that merely shrinks the answer.
# Where does $G$ come from?
#
# ## Two parts of a Hessian
#
# Any per-example loss is a function of the network's outputs, $\ell_n(\theta) = \ell(f_n(\theta), y_n)$ with
# $f_n(\theta) \in \mathbb R^C$. Let $J_n = \partial f_n/\partial\theta$ be the Jacobian, $(C, D)$. Differentiate twice,
# with the chain and the product rule:
#
# $$\nabla\ell_n = J_n^\top\,\frac{\partial\ell}{\partial f}, \qquad
# \nabla^2\ell_n = \underbrace{J_n^\top\,H_{\rm out}\,J_n}_{\text{curvature of the loss}} + \underbrace{\sum_{c=1}^C \frac{\partial\ell}{\partial f_c}\,\nabla^2 f_{n,c}}_{\text{curvature of the network}},
# \qquad H_{\rm out} = \frac{\partial^2\ell}{\partial f\,\partial f^\top}.$$
#
# The mean of the first part is the **Gauss-Newton Hessian**, $G = \frac1N\sum_n J_n^\top H_{\rm out}J_n$. Cross-entropy
# and squared error are convex *in the outputs*, so $H_{\rm out}$ has no negative eigenvalue, hence neither has $G$:
# $u^\top G u$ is a mean of $(J_nu)^\top H_{\rm out}(J_nu) \ge 0$. All trouble is in the second part. It vanishes for a
# linear model, which is why notebook 01 never met it, and where every residual $\partial\ell/\partial f$ is zero. For
# our two weights the two parts are $vv^\top$ and $(ab-\bar y)$ times the swap matrix:

# %%
swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
second = (output(stopped) - targets.mean()) * swap
assert torch.allclose(H, G + second), "H = G + residual × curvature of the network"
print("eigenvalues of G:", [round(x, 3) for x in torch.linalg.eigvalsh(G).abs().tolist()])
print("eigenvalues of the rest:", [round(x, 3) for x in torch.linalg.eigvalsh(second).tolist()])

# %% [markdown]
# `inflib` has both matrices, for any small model. The two weights are a network of two bias-free linear layers, and the
# early stop is a model like any other. A curvature's `solve` takes the damping as an argument, and warns when the
# damped matrix is indefinite, as it is here at $\lambda = 0.05$:

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
# 300 digits, with weight decay, in the ordinary way: Adam, minibatches, a number of epochs, stop. The hidden units are
# $\tanh$, so that everything has all derivatives. (With ReLU the conditions hold only away from its kinks, which a
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
# To differentiate with respect to all weights at once, we want them as one vector $\theta$, $D = 3322$ numbers, and the
# network as a function of it. The order is the course's: layer after layer, each weight matrix row by row, the bias as
# its last column.

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
# Was training finished? If it were, the gradient of what was minimised (the mean loss plus the weight decay's
# $\frac{0.005}{2}\|\theta\|^2$) would be zero. Compare it with the gradient of a single example.


# %%
def loss(theta, x, y):
    return F.cross_entropy(logits(theta, x), y)  # the mean, for a batch


total = grad(loss)(trained, X, y) + 5e-3 * trained
single = vmap(grad(loss), (None, 0, 0))(trained, X, y).norm(dim=1)  # (300,)
print(f"gradient of the objective {total.norm():.2f}; of one example: median {single.median():.2f}")
assert total.norm() > 20 * single.median() / 300, "this run is at a minimum; nobody waits for that as a rule"

# %% [markdown]
# An example enters the objective with its gradient divided by $N = 300$, so the slope that is left is worth dozens of
# examples. To count one of them a little more, and train on until the gradient is zero, would show what training on
# does, and nothing of the example. Step 1 of the table fails, as it always does in practice.
#
# Now the Hessian and the Gauss-Newton Hessian of the mean loss, both as full matrices of 3322 × 3322, and all their
# eigenvalues. This takes some seconds, and is the last time in this course that anybody computes such a thing lightly.

# %%
H = inflib.hessian(model, CrossEntropy(), [(X, y)], progress=False).to_dense()
G = inflib.gauss_newton(model, CrossEntropy(), [(X, y)], progress=False).to_dense()
u = torch.randn(3322, generator=torch.Generator().manual_seed(0))
Hu = jvp(lambda t: grad(loss)(t, X, y), (trained,), (u,))[1]  # derivative of the gradient along u
assert torch.allclose(H @ u, Hu, atol=1e-10), "H is the Jacobian of the gradient; is the order of the weights the same?"

# %% [markdown]
# For $G$ the independent check computes $Gu = \frac1N\sum_n J_n^\top H_{\rm out}J_nu$ from right to left, never forming
# a matrix: how the logits change along $u$, times $\mathrm{diag}(p) - pp^\top$ (the $H_{\rm out}$ of softmax
# cross-entropy, the derivative of its gradient $p - e_y$, with $e_y$ one at the label and zero elsewhere), and back.

# %%
z, Ju = jvp(lambda t: logits(t, X), (trained,), (u,))  # both (300, 10)
p = z.softmax(1)
HJu = p * Ju - p * (p * Ju).sum(1, keepdim=True)  # (diag(p) − p pᵀ) J u
Gu = torch.func.vjp(lambda t: logits(t, X), trained)[1](HJu / len(X))[0]
assert torch.allclose(G @ u, Gu, atol=1e-10), "G is the mean of Jᵀ H_out J over the examples"

# %% [markdown]
# Their spectra. Eigenvalues are sorted, and drawn on an axis that is logarithmic on both sides of zero. Look for three
# things: how the two curves run together at the top, what is at the bottom, and the long middle.

# %%
of_H, of_G = torch.linalg.eigvalsh(H).flip(0), torch.linalg.eigvalsh(G).flip(0)
print(f"H: largest {of_H[0]:.1f}, smallest {of_H[-1]:.3f}; {int((of_H < -1e-5).sum())} are below −0.00001")
print(f"G: largest {of_G[0]:.1f}; {int((of_G < 1e-6).sum())} are below 0.000001, none of them negative")
assert of_H[-1] < -0.01, "H should be indefinite here"
assert of_G[-1] > -1e-10, "G is never indefinite: a mean of Jᵀ H_out J"
assert (of_G > 1e-10).sum() <= 9 * len(X), "each example adds rank 9 to G: ten classes, less one for softmax"

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
# At the top, the two begin at the same order of magnitude. In the long middle $H$ lies above $G$, by several times: the
# curvature of the network is not a small correction. At the bottom, $H$ has hundreds of negative eigenvalues. They are
# small beside the largest, but the inverse turns the order round: the smallest rule. $G$ falls through all the orders
# of magnitude that the axis shows, and then is zero to rounding. It has to be: an example contributes rank 9, so 300
# examples cannot fill 3322 dimensions, and $G$ is **singular whenever there are more weights than classes times
# examples**. So $G$ needs damping as well, and gets it. The difference is that any $\lambda > 0$ will do.
#
# What do the negative eigenvalues do to scores? A litmus test that needs no ground truth: counting an example more must
# not make *that example* less likely. So the influence of example $n$ on its own log-likelihood $f = -\ell_n$, which is
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
# wrong. A damping above the most negative eigenvalue would rule it out, but close to the pole the scores are no better,
# and in a network too large for this experiment nobody knows where the pole is.

# %% [markdown]
# ## A better question
#
# We could now say "use $G$ in place of $H$, because it works". But what would the score then *mean*? Influence is the
# derivative of a response, so there should be an objective whose response it is. Here is the idea, due to Bae et al.
# (2022). The trained weights, wherever training stopped, are taken as they are; call them $\theta^\circ$. Let the
# network be asked: **change as little as possible what you say about the training data, and as little as possible your
# weights, while paying $\varepsilon$ times the loss of example $m$.** The minimum at $\varepsilon = 0$ is then
# $\theta^\circ$ by construction.
#
# "Change as little as possible what you say" needs a distance between outputs that fits the loss.
#
# ### Bregman divergence
#
# A convex function lies above its tangents. The gap between function and tangent is the Bregman divergence. For the
# loss as a function of the outputs $f$, with the tangent at $f^\circ$,
#
# $$D(f, f^\circ) = \ell(f, y) - \ell(f^\circ, y) - \nabla_{\!f}\,\ell(f^\circ, y)^\top(f - f^\circ). \qquad [8]$$
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
# Three properties: $D \ge 0$ by convexity; $D = 0$ with *slope zero* at $f = f^\circ$; and the curvature of $D$ is that
# of the loss, $H_{\rm out}$, as only a straight line has been subtracted. The check adds a fourth: the label does not
# matter. The losses of the two labels differ by a straight line, $\ell(f, \text{no}) - \ell(f,\text{yes}) = f$, and
# straight lines drop out. So $D$ measures what the network *says*, not whether it is right. For the losses we use it
# has a familiar name. For squared error it is $\frac12\|f - f^\circ\|^2$, straight from [8]. Softmax cross-entropy is
# $\ell = \log\sum_k e^{f_k} - f_y$ with the gradient $p - e_y$, so
#
# $$D = \log\sum_k e^{f_k} - \log\sum_k e^{f_k^\circ} - p^{\circ\top}(f - f^\circ).$$
#
# Since the $p_c^\circ$ add up to one, the two logarithms can go inside a sum over classes, where
# $f_c - \log\sum_k e^{f_k} = \log p_c$ is waiting for them:
#
# $$D = \sum_c p_c^\circ\Big[\big(f_c^\circ - \log\sum_k e^{f_k^\circ}\big) - \big(f_c - \log\sum_k e^{f_k}\big)\Big] = \sum_c p_c^\circ\log\frac{p_c^\circ}{p_c} = \mathrm{KL}(p^\circ\,\|\,p).$$


# %%
def bregman(f, f0, y):
    """[8] for cross-entropy, per example (N,), by definition."""
    value, back = torch.func.vjp(lambda out: F.cross_entropy(out, y, reduction="none"), f0)
    (slope,) = back(torch.ones_like(value))  # (N, 10)
    return F.cross_entropy(f, y, reduction="none") - value - (slope * (f - f0)).sum(1)


# %% [markdown]
# We try it on the network's logits, against others at random.

# %%
f0 = logits(trained, X)
f = f0 + torch.randn(f0.shape, generator=torch.Generator().manual_seed(1))
kl = (f0.softmax(1) * (f0.log_softmax(1) - f.log_softmax(1))).sum(1)
assert torch.allclose(bregman(f, f0, y), kl), "KL(p° ‖ p): the trained distribution comes first"
assert torch.allclose(bregman(f, f0, y), bregman(f, f0, (y + 1) % 10)), "the label drops out"

# %% [markdown]
# ### The proximal Bregman objective
#
# Now the objective. The divergence, averaged over the training data, holds the outputs; a penalty on the distance,
# called *proximity*, holds the weights; $\varepsilon$ pulls.
#
# $$\theta^\circ(\varepsilon) = \arg\min_\theta\; \underbrace{\frac1N\sum_{n=1}^N D\big(f_n(\theta), f_n(\theta^\circ)\big) + \frac\lambda2\|\theta-\theta^\circ\|^2 + \varepsilon\,\ell_m(\theta)}_{\mathrm{PBO}(\theta)} \qquad [7]$$
#
# Its response function is called the **proximal Bregman response function**, PBRF. Go through the table of notebook 01
# with it.
#
# **Step 1, the gradient at $\theta^\circ$ for $\varepsilon = 0$.** By the chain rule it is
# $\frac1N\sum_n J_n^\top\,\partial D/\partial f + \lambda(\theta-\theta^\circ)$. At $\theta^\circ$ the second term is
# zero, and $\partial D/\partial f$ is zero because $D$ has slope zero there. So $\theta^\circ$ is a stationary point
# *exactly*, whether or not training had converged. Repaired.
#
# **Step 2, the Hessian at $\theta^\circ$.** Differentiate once more, product rule as before:
#
# $$\nabla^2\,\mathrm{PBO}(\theta^\circ) = \frac1N\sum_n\Big(J_n^\top\frac{\partial^2D}{\partial f\,\partial f^\top}J_n + \sum_c\underbrace{\frac{\partial D}{\partial f_c}}_{=\,0}\nabla^2f_{n,c}\Big) + \lambda I = G + \lambda I.$$
#
# There it is. The network's own curvature, the part that made $H$ indefinite, is multiplied by the slope of $D$, and
# that is zero. What is left is the curvature of $D$ in the outputs, which is $H_{\rm out}$. **$G$ is not an
# approximation to $H$ here: it is the exact Hessian of another objective.** And $\lambda$ is not a numerical trick: it
# is the strength of the proximity term.
#
# **Step 3.** $G + \lambda I$ is positive definite for every $\lambda > 0$, so $\theta^\circ$ is a strict local minimum.
# Repaired.
#
# **Step 4** is not repaired. For a network the PBO is not convex, and the response we follow is a *local* minimum, the
# one that starts at $\theta^\circ$.
#
# **Step 5.** The implicit function theorem applies, with $G + \lambda I$ where $H$ was, and the chain rule [5] carries
# it to any $f$:
#
# $$\left.\frac{d\theta^\circ}{d\varepsilon}\right|_{\varepsilon=0} = -(G+\lambda I)^{-1}\,\nabla\ell_m(\theta^\circ), \qquad [9]$$
#
# $$\mathcal I_f(z_m) = -\nabla f(\theta^\circ)^\top(G+\lambda I)^{-1}\,\nabla\ell_m(\theta^\circ).$$
#
# This is the influence that the rest of the course computes. Check the Hessian, on the network at its unfinished
# weights: autograd twice through the PBO, along $u$, against $Gu + \lambda u$.


# %%
def pbo(theta, x, label, epsilon, lam):
    """The proximal Bregman objective [7] for one extra example (x, label)."""
    q0, logq = f0.softmax(1), logits(theta, X).log_softmax(1)
    divergence = (q0 * (q0.log() - logq)).sum(1).mean()
    return divergence + lam / 2 * (theta - trained).square().sum() + epsilon * loss(theta, x, label)


# %%
lam = 0.01
slope, curve = jvp(lambda t: grad(pbo)(t, X[0], y[0], 0.0, lam), (trained,), (u,))
assert slope.norm() < 1e-12, "at ε = 0 the trained weights are stationary, finished or not"
assert torch.allclose(curve, G @ u + lam * u, atol=1e-10), "is f° held constant when differentiating?"

# %% [markdown]
# And the two weights from the beginning, stopped early at (0.6, 0.5), with $\lambda = 0.1$. We follow the minimum of
# their PBO as $\varepsilon$ grows, by Newton's method. In the figure after that, on the left, is the training loss, on
# whose slope the point lies; on the right, the PBO with $\varepsilon = 0$. Look for the bowl.


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
tangent = -torch.linalg.solve(torch.outer(v, v) + 0.1 * torch.eye(2), g)  # [9], with g = ∇ℓ of the third example
quotient = (settle(stopped, 1e-4) - settle(stopped, -1e-4)) / 2e-4
assert torch.allclose(quotient, tangent, rtol=1e-4), "the response's slope is [9]: is λ the same in both?"

path = [stopped]
for epsilon in torch.linspace(0.05, 0.6, 12):
    path.append(settle(path[-1], epsilon))
assert grad(tiny_pbo)(path[-1], 0.6).norm() < 1e-10, "Newton has not found the minimum of the PBO"

# %% [markdown]
# The slope of the PBO's response, found by minimising it twice, is [9]. Here is the picture.

# %%
a, b = torch.meshgrid(torch.linspace(0.01, 1.8, 91), torch.linspace(0.01, 1.8, 91), indexing="xy")
points = torch.stack([a.flatten(), b.flatten()], dim=1)
levels = torch.logspace(-3, 0.5, 15).tolist()
fig, axes = plt.subplots(1, 2, figsize=(8.6, 4), sharex=True, sharey=True)
for ax, function, title in zip(axes, (mean_loss, tiny_pbo), ("training loss", "PBO at ε = 0"), strict=True):
    ax.contour(a, b, vmap(function)(points).reshape(91, 91), levels=levels, colors=plots.GREY, linewidths=0.5)
    ax.plot(*stopped, "o", color=plots.BLUE)
    ax.set(title=title, xlabel="first weight a", ylabel="second weight b", ylim=(0, 1.8))
axes[0].plot(a[0], 1 / a[0], color=plots.BLUE, label="minima")
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
# the same. If $f_n$ is linear in $\theta$, then $D(f_n(\theta), f_n(\theta^\star))$ is the gap between $\ell_n$ and its
# tangent *as functions of $\theta$*; the proximity term with $\lambda = \alpha$ is the gap of the penalty. Gaps add up
# as their functions do. So the PBO at $\varepsilon = 0$ is the gap between the whole training objective $\mathcal J$
# and its tangent at $\theta^\star$, and that tangent is flat, since $\theta^\star$ is the minimum: it equals
# $\mathcal J(\theta) - \mathcal J(\theta^\star)$ for every $\theta$. Add $\varepsilon\ell_m$, and the minimum is
# notebook 01's, for every $\varepsilon$. A check with a softmax regression on our 300 digits:

# %%
from inflib.validation import fit_linear

alpha = 0.05
ones = torch.cat([X, torch.ones(300, 1)], dim=1)
star = fit_linear(CrossEntropy(), ones, y, alpha).theta[0]  # (10, 197), the minimum


def objective(W):
    return F.cross_entropy(ones @ W.T, y) + alpha / 2 * W.square().sum()


W = star + 0.1 * torch.randn(star.shape, generator=torch.Generator().manual_seed(2))
proximal = bregman(ones @ W.T, ones @ star.T, y).mean() + alpha / 2 * (W - star).square().sum()
assert torch.isclose(objective(W) - objective(star), proximal), "equal for a linear model at its minimum, λ = α"
print(f"objective above its minimum: {objective(W) - objective(star):.5f}; PBO: {proximal:.5f}")

# %% [markdown]
# ## Does the prediction come true?
#
# The PBO is an objective like any other, so it can be minimised, with no approximation, and the result compared with
# [9]. We take 24 training examples, one at a time, with $\varepsilon = 1/N$: the example counts twice. The iteration is
# Newton's with one economy: it keeps the matrix $P = (G+\lambda I)^{-1}$ of the starting point, and halves the step
# where the objective would not fall. Its *first* step, from $\theta^\circ$, where the gradient is
# $\varepsilon\nabla\ell_m$, is $-\varepsilon\,(G+\lambda I)^{-1}\nabla\ell_m$. That is the influence prediction. **The
# influence function is the first Newton step; the response is where the steps end.**

# %%
N = len(X)
which = torch.arange(0, N, N // 24)[:24]


def minimise(which, epsilon, lam, P, steps=200):
    """The PBOs of several examples at once: predicted and actual changes of θ, and the largest gradient left."""
    objective, slope = (vmap(function, (0, 0, 0, None, None)) for function in (pbo, grad(pbo)))
    theta, data = trained.expand(len(which), -1), (X[which], y[which], epsilon, lam)
    g = slope(theta, *data)  # (24, 3322); here, at the start, it is ε ∇ℓ_m
    predicted, start = -g @ P, g.norm(dim=1)
    for _ in range(steps):
        move, now, size = -g @ P, objective(theta, *data), torch.ones(len(which), 1)
        while (worse := objective(theta + size * move, *data) > now + 1e-15).any():
            size[worse] /= 2  # this step would climb
        theta = theta + size * move
        g = slope(theta, *data)
        if (g.norm(dim=1) < 1e-4 * start).all():
            break
    return predicted, theta - trained, (g.norm(dim=1) / start).max()


def inverse(lam):
    return torch.cholesky_inverse(torch.linalg.cholesky(G + lam * torch.eye(len(G))))  # symmetric, positive definite


# %%
P = inverse(lam)
predicted, actual, left = minimise(which, 1 / N, lam, P)
assert left < 1e-4, "the PBO is not minimised: the comparison would measure the optimiser"
assert torch.allclose(predicted, -gradients[which] @ P / N, atol=1e-12), "the first step is −ε (G + λI)⁻¹ ∇ℓ_m"

# %% [markdown]
# The gradient has come down ten thousand times at least, for each of the 24, so these are minima. What do the new
# weights do to queries? As measurements, the margins of fifty query digits. The prediction is [6] of notebook 01,
# gradient times change of weights; the actual change needs no theory.


# %%
def margins(theta):
    z, c = logits(theta, Xq[::10]), yq[::10, None]
    return z.gather(1, c).squeeze(1) - z.scatter(1, c, -torch.inf).logsumexp(1)  # (50,)


jacobian = jacrev(margins)(trained)  # (50, 3322): the queries' ∇f


def compare(predicted, actual):
    """Predicted and actual changes of every query's margin, (50, 24), their correlation and the slope through 0."""
    x, z = jacobian @ predicted.T, (vmap(margins)(trained + actual) - margins(trained)).T
    slope = (x * z).sum() / (x * x).sum()
    return x, z, torch.corrcoef(torch.stack([x.flatten(), z.flatten()]))[0, 1].item(), slope.item()


# %%
x, z, r, size = compare(predicted, actual)
by_query = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(x, z, strict=True)])
print(f"ε = 1/N: correlation {r:.3f} over all pairs, {by_query.mean():.3f} for the mean query; slope {size:.2f}")
assert r > 0.9, "do the minimised objective and the prediction use the same λ and ε?"
assert by_query.mean() > 0.9, "high over all pairs, low by query: only the examples' sizes are right"

# %% [markdown]
# For a network in which nothing of notebook 01's table held, the order is very nearly right. The slope is not one,
# though: the actual changes are smaller than predicted. Is that the finite step? If so, a smaller $\varepsilon$ must
# mend it. Look in the figure for the cloud turning onto the identity line.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
sizes = {}
for ax, epsilon in zip(axes, (1 / N, 0.1 / N), strict=True):
    changes = (predicted, actual) if epsilon == 1 / N else minimise(which, epsilon, lam, P)[:2]
    x, z, r, sizes[epsilon] = compare(*changes)
    plots.against(ax, x, z, what="change of a query's margin (nats)")
    ax.set_title(f"ε = {epsilon * N:.1f}/N: correlation {r:.3f}, slope {sizes[epsilon]:.2f}")
    assert r > 0.9, "the order should be right at both"
assert abs(sizes[0.1 / N] - 1) < 0.1 < abs(sizes[1 / N] - 1), "towards ε = 0 the tangent is the curve"

# %% [markdown]
# At a tenth of the step, the points are nearly on the line. So [9] is the right tangent, and at $\varepsilon = 1/N$ the
# network's response has already bent away from it, for the reason known from the ridge: counted twice, an example adds
# its own curvature to $G + \lambda I$, and the response falls short by something like $1/(1+h)$. Exercise 3 puts that
# in.
#
# The same minimisation is `inflib.validation.pbrf`, for any model and with one damping per layer. It uses another
# method (L-BFGS, in coordinates in which the objective is rounder), and should arrive at the same margins. We give it
# four of the 24.

# %%
from inflib.validation import pbrf

training, queries, four = [(X, y)], [(Xq[::10], yq[::10])], which[:4].tolist()
damping = {"hidden1": lam, "out": lam}
theirs = pbrf(model, CrossEntropy(), training, queries, four, damping, measurement="margin", progress=False)
z = (vmap(margins)(trained + actual[:4]) - margins(trained)).T  # (50, 4)
assert (theirs.change - z).norm() < 0.01 * z.norm(), "two minimisers of one objective; is ε = 1/N in both?"

# %% [markdown]
# ### Only with the right matrix
#
# Would another matrix have done as well? Three predictions of the same response, at $\varepsilon = 1/N$ and
# $\lambda = 0.01$ for all: with $G$, with the Hessian in its place, and with no matrix at all, the mere product of two
# gradients (on a scale of its own, so that only its correlation counts).

# %%
_, _, with_G, _ = compare(predicted, actual)
by_H = -torch.linalg.solve(H + lam * torch.eye(len(H)), gradients[which].T).T / N
_, _, with_H, _ = compare(by_H, actual)
_, _, with_nothing, _ = compare(-gradients[which], actual)
print(f"correlation with the response:  G {with_G:.2f},  H {with_H:.2f},  gradients alone {with_nothing:.2f}")
assert with_G > 0.9 > 0.5 > max(with_H, with_nothing), "G is this objective's own Hessian; were H and G swapped?"

# %% [markdown]
# ## What λ does
#
# So far $\lambda$ looked like something to be kept small. It is part of the question: how firmly are the weights held?
# In the eigenbasis of $G$, [9] divides each component by $\sigma + \lambda$. Directions with $\sigma \gg \lambda$ are
# decided by the data and hardly notice; directions with $\sigma \ll \lambda$ are held by the proximity term. More
# $\lambda$ means a smaller answer, and a simpler one: for $\lambda$ above all eigenvalues,
# $(G+\lambda I)^{-1} \approx I/\lambda$ and the score is the gradient product.
#
# We minimise the PBO again for several $\lambda$, now with twelve of the examples. Look at three columns: how large the
# response is, how well it is predicted, and how like a gradient product the prediction has become.

# %%
dot = (jacobian @ gradients[which[::2]].T).flatten()
table = {}
for strength in (0.003, 0.03, 0.3, 3.0):
    x, z, r, size = compare(*minimise(which[::2], 1 / N, strength, inverse(strength))[:2])
    alike = torch.corrcoef(torch.stack([-x.flatten(), dot]))[0, 1].item()
    table[strength] = (x.square().mean().sqrt().item(), z.square().mean().sqrt().item(), r, size, alike)
columns = list(zip(*table.values(), strict=True))
assert list(columns[1]) == sorted(columns[1], reverse=True), "a firmer hold, a smaller response"
assert list(columns[4]) == sorted(columns[4]), "towards the identity as λ grows"
assert min(columns[2]) > 0.9, "prediction and response at the same λ should agree at every λ"

# %%
print("    λ   predicted change   actual change   correlation   slope   like a gradient product")
for strength, row in table.items():
    print(f"{strength:5g} {row[0]:18.4f} {row[1]:15.4f} {row[2]:13.3f} {row[3]:7.2f} {row[4]:25.2f}")

# %% [markdown]
# The same as a picture. Watch whether the two curves on the left stay together, and what the three on the right tend
# to.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
for column, style, name in ((0, "o-", "predicted [9]"), (1, "s--", "PBO minimised")):
    axes[0].loglog(list(table), columns[column], style, label=name)
axes[0].set(xlabel="damping λ", ylabel="root mean square change of margin (nats)")
for column, style, name in ((2, "o-", "correlation"), (3, "s-", "slope"), (4, "^-", "like a gradient product")):
    axes[1].semilogx(list(table), columns[column], style, label=name)
axes[1].axhline(1, color=plots.GREY, linestyle="--", linewidth=0.8)
axes[1].set(xlabel="damping λ", ylabel="correlation or slope", ylim=(0, 1.1))
for ax in axes:
    ax.legend()
assert abs(columns[3][-1] - 1) < abs(columns[3][0] - 1), "the prediction's size is best where the response is small"

# %% [markdown]
# Damping moves *both*, the prediction and what it predicts; they stay together, closest where $\lambda$ is large and
# the question nearly trivial. So the agreement with the PBRF cannot choose a damping for us, and a comparison of two
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
# Bae et al. (2022) measured these apart from one another, and put most of the gap between influence and retraining down
# to the three of them, and less to the straight line in place of a curve. Whether one wants to know the response or the
# retraining depends on the use; notebook 09 measures both. What we have now is a target that is well defined for every
# network, whether or not it has been trained to the end, and a formula whose only ingredient is $G + \lambda I$.
#
# That matrix had 3322 × 3322 entries here. The next notebooks ask what it is made of (03), and how to invert it when
# the network has a billion weights and the matrix $10^{18}$ entries (04 and 05).
#
# ## Summary
#
# The Hessian of a network is singular, because different weights compute the same function, and indefinite, because the
# network itself is curved and its residuals are not zero; training stops on a slope; and inverting such a matrix turns
# some effects round. The proximal Bregman objective replaces the training loss by its gap to its own tangent and adds
# $\frac\lambda2\|\theta-\theta^\circ\|^2$: by construction it is stationary at the trained weights, and its Hessian
# there is exactly $G+\lambda I$, positive definite. The influence $-\nabla f^\top(G+\lambda I)^{-1}\nabla\ell_m$ is the
# slope of its response, and minimising it confirmed the prediction: nearly perfect order at one full count of an
# example, right in size too for a tenth. For linear models at their optimum it is the old question, so notebook 01 is a
# special case. The damping $\lambda$ is part of the question, not of its numerics. Exercises
#
# Write each function in a new cell and call its check. The solution is folded away, and the cell after it runs it.
#
# ### 1. Another loss (easy, 10 minutes)
#
# Counts are modelled with the Poisson loss $\ell(f, y) = e^f - y f$. Write its divergence [8]. Why does it need no $y$?
#
# ```python
# def poisson_bregman(f, f0):
#     """D(f, f0), one number for each entry of f."""
# ```


# %%
def check_poisson_bregman(answer):
    f, f0 = torch.linspace(-1, 2, 7), torch.linspace(0.8, -0.4, 7)
    came, truth = answer(f, f0), []
    for label in (0.0, 3.0):
        slope = grad(lambda t, label=label: (t.exp() - label * t).sum())(f0)
        truth.append((f.exp() - label * f) - (f0.exp() - label * f0) - slope * (f - f0))
    assert torch.allclose(truth[0], truth[1]), "two labels, one divergence"
    assert not torch.allclose(came, answer(f0, f)), "a Bregman divergence is not symmetric"
    swapped = f0.exp() - f.exp() - f.exp() * (f0 - f)
    assert not torch.allclose(came, swapped), "the tangent touches at f0, the trained output"
    assert torch.allclose(came, truth[0]), "value minus value minus slope times distance"
    print("right; smallest gap:", f"{came.min():.4f}")


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


# %% jupyter={"source_hidden": true}
def poisson_bregman(f, f0):
    return f.exp() - f0.exp() - f0.exp() * (f - f0)


check_poisson_bregman(poisson_bregman)

# %% [markdown]
# ### 2. A network without curvature (medium, 15 minutes)
#
# There is another way to get $G$: replace the *network* by its tangent at $\theta^\circ$,
# $f(\theta^\circ) + J(\theta-\theta^\circ)$, and keep the training loss. Write it for the two-weight network at
# `stopped`. Its Hessian should be $G$, at every point. Is its gradient at `stopped` zero?
#
# ```python
# def linearised_loss(theta):
#     """The mean of ½ (linearised output − y)² over `targets`."""
# ```


# %%
def check_linearised_loss(answer):
    tiny_G = torch.outer(v, v)
    here, away = stopped, torch.tensor([1.7, -0.3])
    assert torch.allclose(answer(here), mean_loss(here)), "at θ° the tangent touches: same output, same loss"
    assert not torch.allclose(hessian(answer)(here), hessian(mean_loss)(here)), "the network is still curved"
    assert torch.allclose(hessian(answer)(here), tiny_G), "the Hessian should be v vᵀ: is v taken at θ°, as a constant?"
    assert torch.allclose(hessian(answer)(away), tiny_G), "v must not depend on θ: it is the slope at θ°"
    print("right; its gradient is that of the training loss, not zero:", f"{grad(answer)(here).norm():.3f}")


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


# %% jupyter={"source_hidden": true}
def linearised_loss(theta):
    outputs = output(stopped) + v @ (theta - stopped)
    return (0.5 * (outputs - targets) ** 2).mean()


check_linearised_loss(linearised_loss)

# %% [markdown]
# ### 3. Leverage once more (harder, 25 minutes)
#
# In notebook 01 dividing by $1 - h$ repaired the size. Do the same here, for an example that is counted *twice*: use
# $G + \lambda I + \varepsilon J_m^\top H_{\rm out}J_m$ as the Hessian. Do not invert a new matrix: with `P` for
# $(G+\lambda I)^{-1}$ and $J_m^\top H_{\rm out}J_m = B^\top B$ ($B$ of ten rows, $\sqrt{p_c}\,(e_c-p)^\top J_m$),
#
# $$(P^{-1} + \varepsilon B^\top B)^{-1} = P - \varepsilon P B^\top(I + \varepsilon BPB^\top)^{-1}BP .$$
#
# ```python
# def corrected(m):
#     """The change of θ (3322,) at ε = 1/N, from P, X, gradients, logits, trained and N."""
# ```


# %%
def check_corrected(answer):
    some = which[:8]
    came = torch.stack([answer(int(m)) for m in some])
    *_, r, size = compare(came, actual[:8])
    *_, r_plain, size_plain = compare(predicted[:8], actual[:8])
    print(f"slope {size_plain:.2f} → {size:.2f}, correlation {r_plain:.3f} → {r:.3f}")
    assert size > 0, "a minus sign: more weight goes downhill"
    assert size < 3, "far too short: is ε in both places? B without ε counts the example N times"
    assert abs(size - 1) < abs(size_plain - 1) / 2, "hardly better: is √p outside the bracket of B?"


# %% [markdown]
# <details><summary>Solution</summary>
#
# Apply the formula to $-\varepsilon\nabla\ell_m$: the first term is the plain prediction, the second takes off what the
# example's own curvature resists.
#
# ```python
# def corrected(m):
#     J = jacrev(lambda t: logits(t, X[m]))(trained)  # (10, 3322)
#     p = logits(trained, X[m]).softmax(0)
#     B = p.sqrt()[:, None] * (torch.eye(10) - p) @ J  # row c is √p_c (e_c − p)ᵀ J
#     step = -P @ gradients[m] / N
#     half = B @ P  # (10, 3322)
#     return step - half.T @ torch.linalg.solve(torch.eye(10) + half @ B.T / N, B @ step) / N
#
#
# check_corrected(corrected)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def corrected(m):
    J = jacrev(lambda t: logits(t, X[m]))(trained)  # (10, 3322)
    p = logits(trained, X[m]).softmax(0)
    B = p.sqrt()[:, None] * (torch.eye(10) - p) @ J  # row c is √p_c (e_c − p)ᵀ J
    step = -P @ gradients[m] / N
    half = B @ P  # (10, 3322)
    return step - half.T @ torch.linalg.solve(torch.eye(10) + half @ B.T / N, B @ step) / N


check_corrected(corrected)

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
