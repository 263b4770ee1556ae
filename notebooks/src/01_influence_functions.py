# %% [markdown]
# # 01 · What would change if this example counted more?
#
# **The question.** A model was fitted to $N$ examples. Give one of them a little more weight, or take it away, and fit
# again. How do the weights move, and whatever is computed from them? Refitting answers that, once per example. This
# notebook derives the formula that answers it for all examples without any refit. Then it refits more than two thousand
# times to see whether the formula is true.
#
# **What you need to know.** Gradients, Hessians, the chain rule; how to solve a linear system; least squares. PyTorch
# is hardly needed until the last sections. Numbers in brackets are the equations of Grosse et al. 2023 (see the
# references). All symbols of the course stand in [one table](notation.md).
#
# **Time.** About 45 minutes to read; it runs in less than half a minute on two CPU cores.

# %%
import torch
from matplotlib import pyplot as plt

from inflib.widgets import plots

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # before any model is built: refits are compared to many digits
plots.use_style()

# %% [markdown]
# ## The smallest model
#
# Start where everything can be done by hand. How much ink does a digit have? Here are eight of the course's digits,
# each with the share of its square that is inked, in per cent.

# %%
from inflib.lab import mnist_5k

digits = mnist_5k()
ink = 50 * (digits.train.inputs.double() + 1)  # a pixel is −1 (paper) to 1 (ink); now 0 to 100 per cent
eight = ink[:8].mean(1)  # (8,)
_ = plots.images(digits.train.images[:8], [f"{share:.1f} %" for share in eight], columns=8)
assert ((eight > 0) & (eight < 100)).all(), "pixels are −1 to 1: add 1 and halve before calling them a share"

# %% [markdown]
# The model is one number $\theta$, the same guess for every digit, with the loss
# $\ell_n(\theta) = \frac12(\theta - y_n)^2$. Minimising the mean loss gives the mean, $\theta^\star = \bar y$. Now let
# example $n$ count for more: add $\varepsilon\,\ell_n$ to the objective, and ask for the minimum again. Setting the
# derivative to zero,
#
# $$(\theta - \bar y) + \varepsilon\,(\theta - y_n) = 0 \qquad\Longrightarrow\qquad \theta^\star(\varepsilon) = \frac{\bar y + \varepsilon\, y_n}{1+\varepsilon}.$$
#
# This is a *response function*: turn the knob $\varepsilon$, and the optimum answers. Two positions of the knob have
# names. The mean loss gives every example the weight $1/N$, so $\varepsilon = -1/N$ takes example $n$ away, and
# $\varepsilon = +1/N$ counts it twice.

# %%
heavy, mean = int(eight.argmax()), eight.mean()


def response(epsilon):
    return (mean + epsilon * eight[heavy]) / (1 + epsilon)


others = torch.cat([eight[:heavy], eight[heavy + 1 :]])
twice = torch.cat([eight, eight[heavy : heavy + 1]])
print(f"mean {mean:.3f}, without example {heavy}: {others.mean():.3f}, with it twice: {twice.mean():.3f}")
assert torch.isclose(response(-1 / 8), others.mean()), "leaving out is ε = −1/N, not −1: the mean loss has weights 1/N"
assert torch.isclose(response(1 / 8), twice.mean()), "counting twice is ε = +1/N"

# %% [markdown]
# The influence of example $n$ is the slope of this curve at $\varepsilon = 0$. Differentiate the fraction:
#
# $$\left.\frac{d\theta^\star}{d\varepsilon}\right|_{\varepsilon=0} = y_n - \bar y .$$
#
# The heavy digit pulls the mean up, by as much as it stands out. The straight line in the figure is all that an
# influence function knows. Look at how far it follows the curve, and where the two marked points are.

# %%
epsilon = torch.linspace(-0.4, 0.6, 101)
tangent = mean + epsilon * (eight[heavy] - mean)
fig, ax = plt.subplots()
ax.plot(epsilon, response(epsilon), label="response θ*(ε)")
ax.plot(epsilon, tangent, "--", color=plots.GREY, label="tangent at ε = 0: the influence")
for knob, name in ((-1 / 8, "left out"), (1 / 8, "counted twice")):
    ax.plot(knob, response(knob), "o", color=plots.ORANGE)
    ax.annotate(name, (knob, response(knob)), xytext=(6, -14), textcoords="offset points", fontsize=8)
ax.set_xlabel("extra weight ε of one example (dimensionless)")
ax.set_ylabel("fitted ink θ* (per cent)")
ax.legend()
gap = (response(epsilon) - tangent).abs()
assert gap[epsilon.abs() <= 1 / 8].max() < gap[[0, -1]].min() / 4, "a tangent is best near the point where it touches"

# %% [markdown]
# Between the marked points the line and the curve are close; further out they part. That is the whole subject in one
# picture: **an influence is a slope, and removing an example is a small finite step along the curve**. The rest of this
# notebook does the same for models whose response function cannot be written down, and keeps an eye on the gap.
#
# ## The response function in general
#
# A model with $D$ weights, in one vector $\theta$, has a loss $\ell_n(\theta)$ for each example. The training objective
# is their mean, plus a penalty on the weights if there is one ($\alpha$ may be zero),
#
# $$\theta^\star = \arg\min_\theta\; \mathcal J(\theta), \qquad \mathcal J(\theta) = \frac1N\sum_{j=1}^N \ell_j(\theta) + \frac\alpha2\|\theta\|^2, \qquad [1]$$
#
# and the response to a change in the weight of example $n$ is
#
# $$\theta^\star(\varepsilon) = \arg\min_\theta\; \mathcal J(\theta) + \varepsilon\,\ell_n(\theta). \qquad [2]$$
#
# Note what stays as it is: the $1/N$ in front of the sum and the penalty do not change with $\varepsilon$. (Grosse et
# al. leave the penalty out.)
#
# Two Hessians will be met again and again, so each gets a letter. $H=\frac1N\sum_j\nabla^2\ell_j$ is that of the *mean
# loss*, what the data know; $H_\alpha=\nabla^2\mathcal J=H+\alpha I$ is that of the *objective*.
#
# ## How to differentiate an argmin
#
# Nobody can write $\theta^\star(\varepsilon)$ down for a neural network. But we know an equation that it satisfies: at
# a minimum, the gradient is zero. Call that gradient $\Phi$,
#
# $$\Phi(\theta, \varepsilon) = \nabla\mathcal J(\theta) + \varepsilon\,\nabla\ell_n(\theta), \qquad \Phi(\theta^\star(\varepsilon), \varepsilon) = 0.$$
#
# $\Phi$ has $D$ components, and $\theta$ has $D$ unknowns: one equation for each. The **implicit function theorem** says
# when such equations define $\theta$ as a smooth function of $\varepsilon$, even though nobody can solve them. Every
# step below needs something, and the next notebook is about what happens to networks when they do not have it.
#
# | step | what it needs |
# |---|---|
# | **1.** $\Phi(\theta^\star, 0) = 0$ | $\mathcal J$ differentiable, and $\theta^\star$ really a minimum of it (training was finished), with no constraint in the way |
# | **2.** Near $(\theta^\star, 0)$ there is exactly one curve $\theta(\varepsilon)$ with $\theta(0) = \theta^\star$ and $\Phi = 0$ along it, and it has a derivative | $\Phi$ continuously differentiable there: $\mathcal J$ and $\ell_n$ twice continuously differentiable. And $\partial\Phi/\partial\theta = \nabla^2\mathcal J(\theta^\star) = H_\alpha$ **invertible** |
# | **3.** The points of that curve are local minima of [2] | $H_\alpha$ positive definite; then the Hessian of $\mathcal J + \varepsilon\ell_n$ stays so for small $\varepsilon$, by continuity |
# | **4.** They are *the* minima of [2] | Something global. For us: $\mathcal J + \varepsilon\ell_n$ strictly convex. With convex losses and a ridge penalty it is, for all $\varepsilon \ge -1/N$, because no example's weight is then negative |
# | **5.** The slope is [3] below | nothing more: differentiate $\Phi(\theta(\varepsilon), \varepsilon) = 0$ |
#
# Step 5 in full. Along the curve $\Phi$ is zero for every $\varepsilon$, so its total derivative is zero too. The
# variable $\varepsilon$ enters in two places, through $\theta(\varepsilon)$ and in front of $\nabla\ell_n$:
#
# $$0 = \frac{d}{d\varepsilon}\Phi(\theta(\varepsilon),\varepsilon) = \Big(\nabla^2\mathcal J(\theta) + \varepsilon\,\nabla^2\ell_n(\theta)\Big)\frac{d\theta}{d\varepsilon} + \nabla\ell_n(\theta).$$
#
# At $\varepsilon = 0$ the term with the example's own Hessian drops out. (Remember it: it is the first thing that is
# missing when $\varepsilon$ is not small.) What is left is $H_\alpha\frac{d\theta}{d\varepsilon} + \nabla\ell_n = 0$,
# and since $H_\alpha$ is invertible,
#
# $$\boxed{\;\mathcal I_\theta(n) = \left.\frac{d\theta^\star}{d\varepsilon}\right|_{\varepsilon=0} = -H_\alpha^{-1}\,\nabla\ell_n(\theta^\star).\;} \qquad [3]$$
#
# **The change of sign.** The minus came from carrying $\nabla\ell_n$ to the other side. It says that more weight on an
# example moves the weights *downhill* on that example's loss, as a step of gradient descent would. $H_\alpha^{-1}$ then
# asks how much all the others resist: where the objective is flat, the same push moves the weights far.
#
# For the mean of the eight inks: $H_\alpha = 1$ and $\nabla\ell_n = \bar y - y_n$, so [3] gives $y_n - \bar y$ once
# more. For a step that is small but not infinitely small we walk along the tangent,
#
# $$\theta^\star(\varepsilon) - \theta^\star \approx \varepsilon\,\mathcal I_\theta(n) = -\varepsilon\,H_\alpha^{-1}\nabla\ell_n(\theta^\star). \qquad [4]$$
#
# ## From the weights to anything made of them
#
# Few people want to know what a weight does. They ask about an output, a margin, the loss on some query. Whatever they
# ask about is called the **measurement** $m(\theta)$, a function of the weights (the paper's $f$; we keep $f$ for a
# model's outputs). The chain rule is one more line, for any $m$ that is differentiable at $\theta^\star$:
#
# $$\mathcal I_m(n) = \left.\frac{d\,m(\theta^\star(\varepsilon))}{d\varepsilon}\right|_{\varepsilon=0} = \nabla m(\theta^\star)^\top\mathcal I_\theta(n) = -\nabla m(\theta^\star)^\top H_\alpha^{-1}\,\nabla\ell_n(\theta^\star). \qquad [5]$$
#
# $$m(\theta^\star(\varepsilon)) - m(\theta^\star) \approx \varepsilon\,\mathcal I_m(n). \qquad [6]$$
#
# The error of [4] and [6] is of second order in $\varepsilon$ (if everything has one more derivative). Two gradients
# and one matrix between them: every method in this course is about that matrix.
#
# One number more, which the course shows wherever it shows influence. The **contribution** of example $n$ is what the
# measurement *loses* if the example is removed, $m(\theta^\star)-m(\theta^\star(-1/N))$. By [6] it is about
# $\frac1N\mathcal I_m(n)$: positive if the example helps, in the units of the measurement.
#
# ## Ridge regression: every step in closed form
#
# A real prediction problem, small enough to be exact: from the *upper* half of a digit, tell how much ink its *lower*
# half has. The upper half is averaged over a grid of 2 × 7 patches, as a share between 0 and 1; a last feature is
# always 1 and carries the bias. Three hundred digits.

# The names of this section end in 1 (`X1`, `y1`); those without it are kept for the next model.

# %%
N1 = 300
squares = ink[:N1].reshape(N1, 28, 28)
patches = torch.nn.functional.avg_pool2d(squares[:, None, :14], (7, 4)).flatten(1) / 100  # (300, 14)
X1 = torch.cat([patches, torch.ones(N1, 1)], dim=1)  # (300, 15)
y1 = squares[:, 14:].mean((1, 2))  # (300,), per cent
alpha1 = 1e-5  # of the penalty ½ α ‖θ‖²
print("examples and features:", tuple(X1.shape))
assert torch.isclose(patches[0].mean() * 100, squares[0, :14].mean()), "patches of equal size keep the mean"

# %% [markdown]
# With $\ell_n = \frac12 (x_n^\top\theta - y_n)^2$, the objective is a quadratic:
#
# $$H = \tfrac1N X^\top X, \qquad H_\alpha = H + \alpha I, \qquad \nabla\mathcal J = H_\alpha\theta - \tfrac1N X^\top y, \qquad \theta^\star = H_\alpha^{-1}\,\tfrac1N X^\top y.$$
#
# $H_\alpha$ has no eigenvalue below $\alpha$, so every condition in the table holds. The gradient of one example's loss
# is its residual $r_n = x_n^\top\theta-y_n$ times its features.

# %%
H1 = X1.T @ X1 / N1
H1_alpha = H1 + alpha1 * torch.eye(15)
theta1 = torch.linalg.solve(H1_alpha, X1.T @ y1 / N1)  # (15,)
residual = X1 @ theta1 - y1  # (300,), per cent
gradients1 = residual[:, None] * X1  # (300, 15): row n is ∇ℓ_n
assert (gradients1.mean(0) + alpha1 * theta1).norm() < 1e-10, "not at the minimum: is α in H_α, and 1/N in both sums?"
print(f"ink of the lower half: spread {y1.std():.1f}, residuals {residual.std():.1f} (per cent)")

# %% [markdown]
# The slow obvious way first: drop one row, solve again, three hundred times. The $1/N$ stays $1/N$, which is what [2]
# says at $\varepsilon = -1/N$. What the example had contributed is the difference, *with it* minus *without it*.

# %%
refits1 = []
for n in range(N1):
    keep = torch.arange(N1) != n
    Xn, yn = X1[keep], y1[keep]
    refits1.append(torch.linalg.solve(Xn.T @ Xn / N1 + alpha1 * torch.eye(15), Xn.T @ yn / N1))
actual1 = theta1 - torch.stack(refits1)  # (300, 15): what each example contributed to θ
print(
    "contributions are at most", f"{100 * actual1.norm(dim=1).max() / theta1.norm():.1f} per cent of the weights' norm"
)

# %% [markdown]
# And the prediction, $\frac1N$ of [3]: all three hundred at once, from one matrix and no refit. The one minus sign is
# that of [3]: an example has moved the weights *downhill* on its own loss.

# %%
influence1 = -torch.linalg.solve(H1_alpha, gradients1.T).T  # (300, 15): row n is [3]
predicted1 = influence1 / N1  # minus [4] at ε = −1/N
cosine = torch.cosine_similarity(predicted1, actual1, dim=1)
print(f"smallest cosine between predicted and actual: {cosine.min():.5f}")
assert cosine.min() > 1 - 1e-9, "if the cosine is −1, a minus sign was lost: [3] has one, a contribution none"

# %% [markdown]
# The *direction* is exactly right for each of the three hundred. Only the length can be wrong, and for ridge regression
# we can find out how wrong, by solving [2] for every $\varepsilon$.
#
# Write $\theta^\star(\varepsilon) = \theta^\star + \Delta$, and $x$, $r$ for the example's features and residual at
# $\theta^\star$. At $\theta^\star+\Delta$ the residual is $r + x^\top\Delta$. There $\nabla\mathcal J = H_\alpha\Delta$,
# because $\nabla\mathcal J$ is linear in $\theta$ and zero at $\theta^\star$. So the gradient of [2] is zero when
#
# $$H_\alpha\Delta + \varepsilon\,x\,(r + x^\top\Delta) = 0 \qquad\Longrightarrow\qquad \Delta = -\varepsilon\,H_\alpha^{-1}x\,(r + x^\top\Delta).$$
#
# The bracket is one unknown number, the example's *new* residual. Multiply by $x^\top$ from the left and add $r$ to get
# an equation for it alone:
#
# $$(r + x^\top\Delta) = r - \varepsilon\,(x^\top H_\alpha^{-1}x)\,(r + x^\top\Delta) \qquad\Longrightarrow\qquad r + x^\top\Delta = \frac{r}{1+\varepsilon\,x^\top H_\alpha^{-1}x},$$
#
# $$\Delta = \frac{-\varepsilon\,H_\alpha^{-1}x\,r}{1+\varepsilon\,x^\top H_\alpha^{-1}x} = \frac{\text{prediction [4]}}{1+\varepsilon\,x^\top H_\alpha^{-1}x}.$$
#
# At $\varepsilon=-1/N$ the denominator is $1-h$ with the example's **leverage** $h = \frac1N x^\top H_\alpha^{-1}x$, a
# number between 0 and 1: $H_\alpha$ is $\frac1N xx^\top$ plus something positive definite, and $h$ is the first one's
# share. The prediction is short by exactly the factor $1-h$. This is the term
# $\varepsilon\,\nabla^2\ell_n$ that we dropped: removing an example also removes *its own* resistance to being moved.

# %%
leverage1 = (X1 * torch.linalg.solve(H1_alpha, X1.T).T).sum(1) / N1  # (300,)
exact = predicted1 / (1 - leverage1)[:, None]
assert torch.allclose(exact, actual1, rtol=1e-8, atol=1e-10), (
    "at ε = −1/N the denominator is 1 − h, at +1/N it is 1 + h"
)
print(f"leverage: mean {leverage1.mean():.3f}, largest {leverage1.max():.3f}; their sum is {leverage1.sum():.1f}")

# %% [markdown]
# The sum is nearly the number of features, 15; it would be 15 with $\alpha = 0$ (the sum is the trace of
# $H_\alpha^{-1}H$). So leverages average about $D/N$, and with more data per parameter the prediction is better across
# the board. What has a large one? Features far from the others', in a direction where few examples hold the fit in
# place. Here are the digits with most and least of it.

# %%
order = leverage1.argsort(descending=True)
shown = torch.cat([order[:5], order[-5:]])
_ = plots.images(digits.train.images[:N1][shown], [f"h = {leverage1[n]:.2f}" for n in shown])
assert leverage1[shown[0]] > 5 * leverage1[shown[-1]], "sorted the wrong way round?"
assert ((leverage1 > 0) & (leverage1 < 1)).all(), "outside 0 to 1: a factor N is missing, or α"

# %% [markdown]
# The five on the left are wide or slanted, with ink in patches that are empty in most digits. The five on the right are
# middling in every way.
#
# Now the picture to remember: predicted against actual. The quantity is the contribution of example $n$ to the model's
# guess for that same digit, where leverage shows most. On the dashed line, the prediction is right in size and not only
# in order. Look at what leaves the line, and at its colour.

# %%
own_predicted1, own_actual1 = (X1 * predicted1).sum(1), (X1 * actual1).sum(1)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True, sharey=True)
panels = (("first order", own_predicted1), ("divided by 1 − h", own_predicted1 / (1 - leverage1)))
for ax, (title, x) in zip(axes, panels, strict=True):
    what = "contribution to own guess (% ink)"
    plots.against(ax, x, own_actual1, what=what, colour=None, c=leverage1, cmap="viridis")
    ax.set_title(f"predicted: {title}")
fig.colorbar(axes[1].collections[0], ax=axes, label="leverage h")
short = 1 - own_predicted1 / own_actual1
assert torch.allclose(short, leverage1, atol=1e-8), "the missing share is the leverage, example by example"

# %% [markdown]
# On the left, points of high leverage bend away from the line, always to the side of an actual contribution larger in size.
# The further out, the more: a point that pulled the fit towards itself hid part of its own residual. On the right, divided
# by $1-h$, every point is on the line. For ridge regression, then, there is nothing else to it: **the error of the
# influence function is leverage**.
#
# ## What ε, the sign and 1/N mean
#
# Before the next model, the conventions, because half of all confusion about influence scores is about units.
#
# - A **score** is a derivative, [5]: change of $m$ per unit of $\varepsilon$. It can be large, since $\varepsilon = 1$
#   would mean that the example counts as much as all the data together.
# - A **contribution** is $\text{score}/N$: what $m$ is expected to *lose* if the example is removed, and to gain if it
#   is counted twice. The units are those of $m$. (The step of removal is $\varepsilon=-1/N$, so $m$ *changes* by
#   $-\text{score}/N$; both minus signs are said once here, and the course shows contributions.)
# - The measurement is something that one would like to see high, by default the log-likelihood of the query's label,
#   $-\ell$. Then score $> 0$ means that more weight on this example *raises* the query's likelihood: a **proponent**.
#   Score $< 0$: an **opponent**. Whoever takes the query's *loss* for $m$ gets the other sign.
#
# In `inflib` the same ridge regression is a linear layer. Its curvature $C$ is the mean over the *examples* only, here
# $H=\frac1N X^\top X$. Whatever is added to the diagonal is the `damping`, an argument of the inverse. So the ridge
# penalty is a damping of $\alpha$.

# %%
from inflib import SquaredError, contribution, hessian, influence

ridge = torch.nn.Linear(14, 1)
with torch.no_grad():
    ridge.weight.copy_(theta1[None, :14])
    ridge.bias.copy_(theta1[14:])
halves = [(patches, y1[:, None])]
C = hessian(ridge, SquaredError(), halves, progress=False)
assert torch.allclose(C.to_dense(), H1), "C is the mean loss's Hessian; α comes in as damping"

# %% [markdown]
# `influence` wants the model, what it was trained for, training data, queries, the curvature; `measurement="logit"`
# asks about the output itself. It returns one row per query and one column per training example. With the training
# digits as their own queries, the diagonal is what we just plotted. (Its source is [5]: one solve and one product, in
# [`scoring.influence`](../inflib/scoring.py), [`dense.Dense`](../inflib/dense.py).)

# %%
scores1 = influence(ridge, SquaredError(), halves, halves, C, damping=alpha1, measurement="logit", progress=False)
contributions1 = contribution(scores1, n_train=N1)  # what each digit's guess would lose
assert torch.allclose(contributions1, X1 @ predicted1.T, atol=1e-9), "scores are −∇mᵀH_α⁻¹∇ℓ, contributions score/N"
assert torch.allclose(contributions1.diagonal(), own_predicted1, atol=1e-9), "the diagonal: each asked about itself"
print("scores:", tuple(scores1.shape), "queries × training examples")

# %% [markdown]
# ## Logistic regression: four hundred points, four hundred refits
#
# Ridge regression is special, since its Hessian does not depend on $\theta$. The next model has none of that comfort:
# tell a 4 from a 9. Images are averaged to 7 × 7 pixels and get a 1 for the bias; four hundred examples. All of the
# course's query digits that are a 4 or a 9 serve as queries; the model never sees them in training.


# %%
def task(part, classes, count=None):
    """Images of these classes as (n, 50) features, the class's position in the list, and the 28 × 28 pictures."""
    rows = torch.isin(part.labels, torch.tensor(classes)).nonzero().squeeze(1)[:count]
    small = torch.nn.functional.avg_pool2d(part.inputs[rows].double().reshape(-1, 28, 28), 4).flatten(1)
    labels = (part.labels[rows][:, None] == torch.tensor(classes)).long().argmax(1)
    return torch.cat([small, torch.ones(len(rows), 1)], dim=1), labels, part.images[rows]


X, label, pictures = task(digits.train, [4, 9], 400)
Xq, label_q, pictures_q = task(digits.queries, [4, 9])
y, N = label.double(), len(X)  # y = 1 for a nine
print(f"{N} to train on, {int(y.sum())} of them nines; {len(Xq)} queries")

# %% [markdown]
# The model says $p = 1/(1+e^{-x^\top\theta})$ for the probability of a 9, with the loss $\ell = -\log p(\text{label})$.
# Two derivatives:
#
# $$\nabla\ell_n = (p_n - y_n)\,x_n, \qquad \nabla^2\ell_n = p_n(1-p_n)\,x_nx_n^\top, \qquad H = \frac1N\sum_n p_n(1-p_n)\,x_nx_n^\top.$$
#
# The losses are convex and $H_\alpha$ has no eigenvalue below $\alpha$, so again every condition holds. There is one
# minimum, and Newton's method finds it to the last digit. We write it for many weightings of the examples at once. A
# row of $w$ is one weighting, all ones the ordinary fit; a zero in place $n$ leaves example $n$ out.

# %%
alpha = 0.03


def fit(w, targets=y, penalty=alpha, steps=10):
    """Newton's method for (1/N) Σ w_n ℓ_n + ½ α ‖θ‖², for every row of w (K, N) at once: weights (K, 50)."""
    theta = torch.zeros(len(w), X.shape[1])
    for _ in range(steps):
        p = torch.sigmoid(theta @ X.T)  # (K, N)
        gradient = (w * (p - targets)) @ X / N + penalty * theta  # (K, 50)
        curved = (X.T * (w * p * (1 - p))[:, None, :]) @ X / N + penalty * torch.eye(X.shape[1])  # (K, 50, 50)
        theta = theta - torch.linalg.solve(curved, gradient)
    return theta, gradient.norm(dim=1).max()


everyone = torch.ones(1, N)
(theta,), left = fit(everyone)
print(f"right on {((Xq @ theta > 0) == label_q.bool()).double().mean():.0%} of the queries")
assert left < 1e-12, "Newton's method has not arrived: these numbers would measure the optimiser, not the influence"

# %% [markdown]
# First the theorem itself. Turn the knob by a tiny $\pm\varepsilon$, refit twice, and take the difference quotient:
# that is $d\theta^\star/d\varepsilon$ with no theory in it. It should equal $-H_\alpha^{-1}\nabla\ell_n$. We try it on
# twenty examples.

# %%
p = torch.sigmoid(X @ theta)
gradients = (p - y)[:, None] * X  # (400, 50)
H_alpha = (X.T * (p * (1 - p))) @ X / N + alpha * torch.eye(50)
influence_on_theta = -torch.linalg.solve(H_alpha, gradients.T).T  # (400, 50): [3] for every example

tiny = 1e-4
nudge = torch.zeros(20, N)
nudge[torch.arange(20), torch.arange(0, N, N // 20)] = N * tiny  # weights w are in units of 1/N
quotient = (fit(everyone + nudge)[0] - fit(everyone - nudge)[0]) / (2 * tiny)
error = (quotient - influence_on_theta[:: N // 20]).norm() / quotient.norm()
assert error < 1e-5, "off by −1: the sign of [3]. Off by N: is the knob ε, or the weight Nε?"

# %% [markdown]
# The implicit function theorem holds, to the accuracy of the difference quotient. Now the finite step. Every one of the
# four hundred is left out, and the model refitted. `inflib` has the same loop for any linear model,
# [`leave_one_out.fit_linear`](../inflib/validation/leave_one_out.py), and the two should agree.

# %%
from inflib import Bernoulli
from inflib.validation import fit_linear, left_out

refits, unfinished = fit(1 - torch.eye(N))  # row n leaves example n out
assert unfinished < 1e-12, "some refit has not converged"
theirs = fit_linear(Bernoulli(), X, y[:, None], alpha, left_out(N), start=theta[None]).theta  # (400, 1, 50)
assert torch.allclose(theirs[:, 0], refits, atol=1e-8), "same objective? the 1/N stays 1/N when an example goes"
actual = theta - refits  # (400, 50): contributions

# %% [markdown]
# For every query $q$ and every training example there are two contributions to the query's logit $x_q^\top\theta$: the
# predicted one, $\frac1N$ of [5], and the one that the refits show. Two numbers judge the prediction. The *correlation*
# over all pairs says whether contributions are right up to scale, and the *slope* of actual against predicted whether
# the size is.


# %%
def agreement(predicted, actual):
    """Correlation, and the slope of the line through 0, over all pairs."""
    said, seen = predicted.flatten(), actual.flatten()
    return torch.corrcoef(torch.stack([said, seen]))[0, 1].item(), (said @ seen / (said @ said)).item()


predicted_logit = Xq @ influence_on_theta.T / N  # (100, 400)
actual_logit = Xq @ actual.T
alike, size = agreement(predicted_logit, actual_logit)
print(f"{predicted_logit.numel()} pairs: correlation {alike:.4f}, slope {size:.3f}")
assert alike > 0.999, "a correlation near −1: the sign; a low one: is H_α at the minimum, with α in it?"
assert abs(size - 1) < 0.05, "a slope of N or 1/N: the units of ε"

# %% [markdown]
# Forty thousand predictions without one refit, and the refits agree. The correlation is practically one; actual
# contributions are larger than predicted by 3.7 per cent. Such a one-sided error has a suspect. In the figure, see on
# the left one query against all training examples; on the right, each training example's own logit, where leverage
# bites hardest.

# %%
unsure = int((Xq @ theta).abs().argmin())  # the query nearest to the decision boundary
leverage = p * (1 - p) * (X * torch.linalg.solve(H_alpha, X.T).T).sum(1) / N  # (400,)
own_predicted, own_actual = (X * influence_on_theta).sum(1) / N, (X * actual).sum(1)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
plots.against(axes[0], predicted_logit[unsure], actual_logit[unsure], what="contribution to a query's logit (nats)")
what = "contribution to own logit (nats)"
plots.against(axes[1], own_predicted, own_actual, what=what, colour=None, c=leverage, cmap="viridis")
fig.colorbar(axes[1].collections[0], ax=axes, label="leverage h (right)")
axes[0].locator_params(axis="x", nbins=5)
axes[0].set_title("the least certain query")
axes[1].set_title("every example on itself")
assert (own_actual / own_predicted).min() > 1, "every example contributes more to itself than first order says"

# %% [markdown]
# The left cloud is a line. On the right, both ends bend away. The examples that contribute most to their own logit
# contribute more than predicted, and they are the ones with the lighter colour. The reason is as before. With
# $h = \frac1N p(1-p)\,x^\top H_\alpha^{-1}x$, dividing by $1-h$ gives the first Newton step of the *refit's own*
# objective, from which the example's curvature is gone too. (The algebra is that of the ridge, with $\sqrt{p(1-p)}\,x$
# in place of $x$.) For a quadratic that step was exact. Here it should at least straighten the picture.

# %%
straightened = predicted_logit / (1 - leverage)
alike_newton, size_newton = agreement(straightened, actual_logit)
print(f"divided by 1 − h: correlation {alike_newton:.5f}, slope {size_newton:.4f}")
one_step = theta + torch.linalg.solve(H_alpha - p[7] * (1 - p[7]) * torch.outer(X[7], X[7]) / N, gradients[7] / N)
assert torch.allclose(Xq @ (theta - one_step), straightened[:, 7]), "a Newton step removes the example from H as well"
assert abs(size_newton - 1) < abs(size - 1) / 5, "the correction makes it worse: 1 + h for 1 − h?"

# %% [markdown]
# The slope is now one to within a fraction of a per cent. So what remained was leverage again, and only a trace of it
# is left for $p(1-p)$ changing along the way.
#
# How much leverage there is, is in the hands of $\alpha$: the penalty holds the fit in place where the data do not. We
# repeat all refits for three more values. Look for the sum of the leverages growing as $\alpha$ falls, and the slope
# with it.


# %%
def at(strength):
    """Predicted and actual contributions to the queries' logits (100, 400), and the leverages, at this α."""
    (weights,), _ = fit(everyone, penalty=strength)
    p = torch.sigmoid(X @ weights)
    inverse = torch.linalg.inv((X.T * (p * (1 - p))) @ X / N + strength * torch.eye(50))
    h = p * (1 - p) * (X @ inverse * X).sum(1) / N
    guess = -Xq @ inverse @ ((p - y)[:, None] * X).T / N
    return guess, Xq @ (weights - fit(1 - torch.eye(N), penalty=strength)[0]).T, h


# %%
print("    α   sum of h   correlation   slope   short by   slope after 1/(1-h)")
sizes, repaired = [], []
for strength in (0.1, 0.03, 0.01, 0.003):
    guess, truth, h = at(strength)
    alike, size = agreement(guess, truth)
    after = agreement(guess / (1 - h), truth)[1]
    print(f"{strength:5g} {h.sum():10.1f} {alike:13.4f} {size:7.3f} {100 * (1 - 1 / size):8.1f} % {after:21.3f}")
    sizes.append(size)
    repaired.append(after)
assert sizes == sorted(sizes), "less penalty, more leverage, larger slope"
assert max(abs(after - 1) for after in repaired) < 0.02, "1/(1 − h) repairs the slope at every α"

# %% [markdown]
# With a tenth of the penalty the prediction is short by 12.7 per cent in place of 3.6, and the correlation hardly
# notices. (*Short by* is 1 − predicted/actual, as in the ridge's figure.) Keep this in mind for later chapters: a correlation near one says nothing about size. The last of these four,
# drawn for the least certain query: see which colour leaves the line first.

# %%
fig, ax = plt.subplots(figsize=(4.8, 3.6))
what = "contribution to a query's logit (nats)"
plots.against(ax, guess[unsure], truth[unsure], what=what, colour=None, c=h, cmap="viridis")
fig.colorbar(ax.collections[0], ax=ax, label="leverage h")
ax.set_title("α = 0.003")
missing = 1 - guess[unsure] / truth[unsure]  # share of the contribution
assert missing[h > h.quantile(0.9)].median() > 2 * missing[h < h.quantile(0.5)].median(), "the bend is where h is large"

# %% [markdown]
# The light points, of high leverage, bend away on both sides, as in the ridge; the dark ones lie on the line. And a
# caution. The leverages add up to at most the number of weights (exercise 3), here 50 for 400 examples. A network has more
# weights than examples, so for it that bound promises nothing. An example whose leverage came near one would be no small
# step to *remove*.
#
# ## A logit, a margin, a log-likelihood
#
# Equation [5] takes any $m$. To see three of them, take a third class: 4, 7 or 9, with softmax regression. The weights
# are a matrix $W$, 3 classes by 50 features, and the logits are $z = Wx$. For a query with label $c$:
#
# - the **logit** $z_c$;
# - the **margin** $z_c - \log\sum_{k\ne c}e^{z_k}$, the log odds of the right class against all the others;
# - the **log-likelihood** $\log p_c$, which is minus the loss and `inflib`'s default.
#
# We now leave the formulas to `inflib` and only refit. For a softmax layer the Hessian is that of the cross-entropy,
# and $\alpha = 0.03$ is the damping as before.

# %%
from inflib import CrossEntropy

X3, y3, pictures3 = task(digits.train, [4, 7, 9], 450)
Xq3, yq3, pictures_q3 = task(digits.queries, [4, 7, 9])
W = fit_linear(CrossEntropy(), X3, y3, alpha).theta[0]  # (3, 50)
without = fit_linear(CrossEntropy(), X3, y3, alpha, left_out(450), start=W).theta  # (450, 3, 50)
shift = (without - W).flatten(1).norm(dim=1) / W.norm()
print(f"leaving one out moves the weights by {100 * shift.min():.2f} to {100 * shift.max():.1f} per cent")
assert (shift > 0).all(), "did the weightings reach the fit?"

# %%
model = torch.nn.Linear(49, 3)
with torch.no_grad():
    model.weight.copy_(W[:, :49])
    model.bias.copy_(W[:, 49])
train, queries = [(X3[:, :49], y3)], [(Xq3[:, :49], yq3)]
curvature = hessian(model, CrossEntropy(), train, progress=False)  # (150, 150)
left3 = (model(X3[:, :49]).softmax(1) - torch.eye(3)[y3]).T @ X3 / len(X3) + alpha * W
assert left3.norm() < 1e-9, "the linear layer is not at the minimum that fit_linear found"

# %% [markdown]
# One call for each measurement, and the same measurement taken of the 450 refits. Look for points on the identity line
# in all three panels. Is the cloud *straight* in all three? And compare the axes: the three ask about one model in
# different units.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4))
scores, real = {}, {}
for ax, name in zip(axes, ("logit", "margin", "log_likelihood"), strict=True):
    scores[name] = influence(model, CrossEntropy(), train, queries, curvature, alpha, measurement=name, progress=False)
    with_all = CrossEntropy().measure(name, Xq3 @ W.T, yq3)  # (Q,)
    with_one_less = torch.stack([CrossEntropy().measure(name, Xq3 @ w.T, yq3) for w in without], dim=1)  # (Q, 450)
    real[name] = with_all[:, None] - with_one_less
    expected = contribution(scores[name], n_train=450)
    plots.against(ax, expected, real[name], what=f"contribution to {name.replace('_', '-')} (nats)")
    alike3, size3 = agreement(expected, real[name])
    ax.set_title(said := f"correlation {alike3:.4f}, slope {size3:.2f}")
    print(f"{name:14}  {said}")
    assert alike3 > 0.99, f"{name}: is the refit measured with the same function?"
    assert abs(size3 - 1) < 0.08, f"{name}: off by N? contribution divides by the number of training examples"

# %% [markdown]
# All three lie about the line, with the little extra steepness that leverage causes. But the third cloud is *bent*, and
# leverage does not do that: it steepens both arms alike. Here the upper arm leaves the line more than the lower one. It
# is the measurement that is curved. As $\log p_c = -\log(1+e^{-\text{margin}})$, a contribution $\delta$ to the margin
# is one of
#
# $$(1-p_c)\,\delta + \tfrac12\,p_c(1-p_c)\,\delta^2 + \dots$$
#
# to $\log p_c$. The first term is [5]; the second is positive for both signs of $\delta$, so it adds to a proponent's
# contribution and takes from an opponent's. Predict the *margin* instead, which is nearly straight, and carry it
# through the exact curve: the two arms should then be alike. We look at the hundredth of all pairs with the largest
# predictions, where a bend shows most.

# %%
margin = CrossEntropy().margin(Xq3 @ W.T, yq3)[:, None]  # (Q, 1)
delta = contribution(scores["margin"], n_train=450)
carried = torch.nn.functional.logsigmoid(margin) - torch.nn.functional.logsigmoid(margin - delta)  # (Q, 450)
straight = contribution(scores["log_likelihood"], n_train=450)
far = straight.abs() > straight.abs().quantile(0.99)


def beyond(expected):
    """By how many per cent actual contributions to log p exceed the expected ones: proponents, opponents."""
    arms = far & (delta > 0), far & (delta < 0)
    return [100 * (real["log_likelihood"][arm].sum() / expected[arm].sum() - 1).item() for arm in arms]


print("actual beyond predicted  proponents  opponents")
for way, expected in (("by [5]", straight), ("through the curve", carried)):
    print("{:22} {:9.1f} %  {:7.1f} %".format(way, *beyond(expected)))
(up, down), (up_carried, down_carried) = beyond(straight), beyond(carried)
assert up > 1.5 * down, "log p is concave: the arms of its cloud differ"
assert abs(up_carried - down_carried) < (up - down) / 4, "carried through the curve, the arms should be alike"

# %% [markdown]
# Carried through the curve, both arms go beyond the prediction by nearly the same share. That share is the margin's own,
# since the curve was exact. Is it leverage? Then taking the example's own Hessian out of $H_\alpha$ should remove it, as
# dividing by $1-h$ did above. For three classes that is one solve an example.

# %%
p3 = (X3 @ W.T).softmax(1)  # (450, 3)
pull3 = ((torch.eye(3)[y3] - p3)[:, :, None] * X3[:, None, :]).flatten(1)  # (450, 150): −∇ℓ_n
spread = torch.diag_embed(p3) - p3[:, :, None] * p3[:, None, :]  # (450, 3, 3): diag(p) − p pᵀ
without_own = [
    curvature.to_dense() + alpha * torch.eye(150) - torch.kron(spread[n], torch.outer(X3[n], X3[n])) / 450
    for n in range(450)
]
given = torch.stack([torch.linalg.solve(C_n, pull) / 450 for C_n, pull in zip(without_own, pull3, strict=True)])
slopes = torch.func.jacrev(lambda w: CrossEntropy().margin(Xq3 @ w.reshape(3, 50).T, yq3))(W.flatten())  # (Q, 150)
repaired3 = torch.nn.functional.logsigmoid(margin) - torch.nn.functional.logsigmoid(margin - slopes @ given.T)
print("{:22} {:9.1f} %  {:7.1f} %".format("and without own part", *beyond(repaired3)))
assert max(map(abs, beyond(repaired3))) < 0.5, "a Newton step removes the example's own Hessian, over N, as well"

# %% [markdown]
# It was leverage. Two errors, then, and two remedies: the example's own curvature taken out, and the exact function for a
# curved measurement.
#
# The first term above is worth a second look. By the chain rule $\nabla\log p_c = (1-p_c)\,\nabla\text{margin}$, so the
# score for the log-likelihood is the one for the margin, shrunk by how sure the model already is.

# %%
p_right = (Xq3 @ W.T).softmax(1).gather(1, yq3[:, None])  # (Q, 1)
by_margin, by_likelihood = scores["margin"], scores["log_likelihood"]
assert torch.allclose(by_likelihood, (1 - p_right) * by_margin, atol=1e-10), "d log p / d margin is 1 − p"
largest = by_likelihood.abs().amax(1)
sure, least_sure = largest[p_right.argmax()], largest[p_right.argmin()]
print(f"largest score of the surest query {sure:.2f}, of the least sure {least_sure:.2f}")
assert least_sure > 10 * sure, "confident queries should have small scores for log p"

# %% [markdown]
# This explains something that people meet in their first experiment: for many queries *nothing* seems to have any
# influence. A query that is already answered with near certainty has no log-likelihood left to gain. The margin has no
# such ceiling. Notebook 02 asks about margins for that reason; most others ask about the log-likelihood, which is what
# training maximises, and mind how sure the model is.
#
# ## Proponents and opponents
#
# Finally the pictures. We take the 4-or-7-or-9 query whose margin is nearest to zero, and show the training digits with
# the largest and the smallest scores for its margin. The caption gives each digit's contribution, in nats of margin:
# what the query would *lose* if that digit were removed.

# %%
nearest = int(margin.abs().argmin())
ranked = by_margin[nearest].argsort(descending=True, stable=True)
top, bottom, names = ranked[:7], ranked.flip(0)[:7], "479"
captions = [f"a {names[y3[n]]}: {delta[nearest, n]:+.3f}" for n in torch.cat([top, bottom])]
pictures = [pictures_q3[nearest], *pictures3[top], pictures_q3[nearest], *pictures3[bottom]]
captions = ["the query", *captions[:7], f"it is a {names[yq3[nearest]]}", *captions[7:]]
_ = plots.images(pictures, captions, columns=8, size=1.05, title="proponents above, opponents below")
assert delta[nearest, top].min() > 0 > delta[nearest, bottom].max(), "score > 0 is a proponent"

# %% [markdown]
# Every proponent shown has the query's own label. Most opponents shown have another one: a digit that looks like the query
# but is called something else argues against it. Most, not all. Two thin 4s stand against this fat one: a digit of the
# *same* class can be an opponent too.
#
# Are the signs true? The refits know. Among the pairs with the larger predicted contributions, we count how often the
# actual contribution has the same sign.

# %%
of_another = (y3[bottom] != yq3[nearest]).sum()
assert (y3[top] == yq3[nearest]).all(), "a sign error puts other classes at the top"
assert of_another == 5, "five of these opponents are of another class, two are 4s like the query"
larger = delta.abs() > delta.abs().median()
same = (delta.sign() == real["margin"].sign())[larger].double().mean().item()
print(f"same sign in {100 * same:.1f} per cent of the pairs with the larger predictions")
assert same > 0.99, "near 0: the sign is flipped somewhere between score and removal"

# %% [markdown]
# ## Summary
#
# Counting an example a little more moves the optimum by $-H_\alpha^{-1}\nabla\ell_n$ for each unit of weight, because
# along the curve of optima the gradient stays zero. The implicit function theorem supplies the curve if training is
# finished, the losses are smooth and $H_\alpha$ is invertible; the chain rule carries this to any measurement. Removing
# an example is the step $\varepsilon=-1/N$ along the tangent. The refits agreed, with correlations above 0.99 for
# logits, margins and log-likelihoods; sizes were short by 1.7 per cent at a strong penalty and by 12.7 at a weak one,
# which is leverage. All of it was convex, converged and invertible; the next notebook takes these away one by one.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. A wrong label (easy, 10 minutes)
#
# Training example $n$ of the 4-or-9 problem gets the *other* label. Predict the change of the weights. The check refits
# with the label flipped. Hint: it is two changes of weight at once.

# %% jupyter={"source_hidden": true}
from inflib.lab import exercise


@exercise
def check_flipped(answer):
    doubtful, sure = (p - 0.5).abs().argsort()[:3].tolist(), (p - y).abs().argsort()[:3].tolist()
    for n in doubtful + sure:  # where neither label is obvious; where the model never doubted the old one
        truth = fit(everyone, torch.where(torch.arange(N) == n, 1 - y, y))[0][0] - theta
        came = answer(n)
        assert came.shape == (50,), f"shape {tuple(came.shape)}, expected (50,)"
        ratio = (came @ truth / (truth @ truth)).item()
        assert ratio > 0, f"example {n}: the weights move the other way; the old label leaves, the new one comes"
        assert n in doubtful or ratio > 0.3, f"example {n}: {ratio:.2f} of the change; a removal twice is no addition"
        assert not 0.3 < ratio < 0.7, f"example {n}: {ratio:.2f} of the change; removing one label or adding the other?"
        assert abs(ratio - 1) < 0.15, f"example {n}: {ratio:.2f} times the actual change; in units of 1/N?"
        assert torch.cosine_similarity(came, truth, dim=0) > 0.99, f"example {n}: the size fits, the direction does not"
    return "right: a flip is a removal and an addition"


# %%
def flipped(n):
    """The change of θ (50,) when the label of example n flips, from X, y, p, H_alpha and N."""
    return ...  # your answer


check_flipped(flipped)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Take the old example away ($\varepsilon=-1/N$) and add the relabelled one ($\varepsilon=+1/N$). The gradients are
# $(p-y)x$ and $(p-(1-y))x$; their difference does not contain $p$: a flip moves the weights by
# $\pm\frac1N H_\alpha^{-1}x$ whatever the model thought.
#
# ```python
# def flipped(n):
#     old, new = (p[n] - y[n]) * X[n], (p[n] - (1 - y[n])) * X[n]
#     return -torch.linalg.solve(H_alpha, new - old) / N
#
#
# check_flipped(flipped)
# ```
# </details>

# %% [markdown]
# ### 2. What do all influences add up to? (medium, 15 minutes)
#
# Without a penalty, the scores of all training examples for any one query sum to zero, since $\sum_n\nabla\ell_n = 0$
# at the optimum. With the penalty they do not. Find their sum *without* using any example's gradient.


# %% jupyter={"source_hidden": true}
@exercise
def check_total(answer):
    for query in Xq[[0, 50, 99]]:
        truth, came = (influence_on_theta @ query).sum(), answer(query)
        assert not torch.isclose(came, truth / N), "the gradients SUM to −Nα θ; only their mean is −α θ"
        assert not torch.isclose(came, -truth), "there are two minus signs, one of [3] and one of Σ∇ℓ = −Nα θ"
        assert torch.isclose(came, truth), f"{came:.4f} came, the scores sum to {truth:.4f}"
    return "right: without a penalty, what proponents give, opponents take"


# %%
def total(gradient):
    """Σ_n of the scores for a query with this ∇m (50,), from H_alpha, theta, alpha and N alone."""
    return ...  # your answer


check_total(total)

# %% [markdown]
# <details><summary>Solution</summary>
#
# At the optimum $\frac1N\sum_n\nabla\ell_n + \alpha\theta^\star = 0$, so $\sum_n\nabla\ell_n = -N\alpha\theta^\star$
# and $\sum_n\mathcal I_m(n) = -\nabla m^\top H_\alpha^{-1}(-N\alpha\theta^\star)$.
#
# ```python
# def total(gradient):
#     return N * alpha * gradient @ torch.linalg.solve(H_alpha, theta)
#
#
# check_total(total)
# ```
# </details>

# %% [markdown]
# ### 3. How much leverage is there? (medium, 15 minutes, pencil and paper)
#
# Ridge regression, $h_n=\frac1N x_n^\top H_\alpha^{-1}x_n$. Prove that the leverages of all examples add up to
# $\sum_k \mu_k/(\mu_k+\alpha)$, where $\mu_k$ are the eigenvalues of $H=\frac1N X^\top X$. (A number equals its own
# trace, and a trace does not mind if its factors are cycled.) Then the sum for a model with three weights, whose $H$ has
# the eigenvalues 3, 1 and 0.2, at $\alpha=0.2$.


# %% jupyter={"source_hidden": true}
@exercise
def check_leverages(answer):
    assert abs(answer - 3) > 1e-9, "3 is the sum without a penalty: every direction counts in full only at α = 0"
    assert abs(answer - (0.2 / 3.2 + 0.2 / 1.2 + 0.5)) > 1e-3, "that is Σ α/(μ + α), the share that the penalty holds"
    assert abs(answer - (1 / 3.2 + 1 / 1.2 + 1 / 0.4)) > 1e-3, "that is tr H_α⁻¹; the sum over the examples left an H"
    assert abs(answer - (3 / 3.2 + 1 / 1.2 + 0.5)) < 1e-3, "not the sum: add μ/(μ + 0.2) for μ = 3, 1 and 0.2"
    return "right: each direction counts with the share that the data decide, so this is a number of weights"


# %%
leverages = ...  # your number

check_leverages(leverages)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\sum_n h_n = \frac1N\sum_n\mathrm{tr}(x_n^\top H_\alpha^{-1}x_n) = \mathrm{tr}\big(H_\alpha^{-1}\,\frac1N\sum_n x_nx_n^\top\big) = \mathrm{tr}(H_\alpha^{-1}H)$.
# In the eigenbasis of $H$, which is also that of $H_\alpha = H+\alpha I$, the trace is the sum of $\mu_k/(\mu_k+\alpha)$.
# It is called the *effective number of parameters*: here 0.9375 + 0.8333 + 0.5.
#
# ```python
# leverages = 3 / 3.2 + 1 / 1.2 + 0.2 / 0.4
#
# check_leverages(leverages)
# mu = torch.linalg.eigvalsh(H1)
# assert torch.isclose(leverage1.sum(), (mu / (mu + alpha1)).sum()), "and for the ridge above"
# ```
# </details>

# %% [markdown]
# ### 4. A whole group leaves (harder, 20 minutes)
#
# To first order, the effect of removing a group is the sum of the single effects. But a group's leverages reinforce
# each other. Do *better than first order*: take the group's own curvature out of $H_\alpha$ as well, as $1-h$ did for
# one example. The check removes the thirty examples that raise the unsure query's logit most.


# %% jupyter={"source_hidden": true}
@exercise
def check_group_step(answer):
    rows = predicted_logit[unsure].argsort(descending=True)[:30]  # removing these lowers the query's logit most
    keep = torch.ones(1, N).index_fill(1, rows, 0.0)
    truth = Xq[unsure] @ (fit(keep)[0][0] - theta)
    plain, came = -predicted_logit[unsure, rows].sum(), Xq[unsure] @ answer(rows)
    assert came * truth > 0, "the sign: removal goes uphill on the group's loss"
    assert abs(came - plain) > 1e-9, "that is the sum of the single effects; H_alpha still holds the group's curvature"
    assert abs(came - truth) < abs(plain - truth) / 2, "hardly better than the sum; the group's part of H is over N"
    first, moved = torch.linalg.solve(H_alpha, gradients[rows].sum(0) / N), fit(keep)[0][0] - theta
    best = first * (first @ moved / (first @ first))  # the multiple of the plain step that fits the refit best
    assert (answer(rows) - moved).norm() < (best - moved).norm(), "no better than a multiple of the plain step"
    return f"right; logit: first order {plain:.2f}, yours {came:.2f}, refitted {truth:.2f}"


# %%
def group_step(rows):
    """The change of θ (50,) when all examples in `rows` leave, from H_alpha, X, p, gradients and N."""
    return ...  # your answer


check_group_step(group_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# The Newton step of the objective that is left. Its gradient at $\theta^\star$ is minus the group's share, and its
# Hessian is $H_\alpha$ without the group's share.
#
# ```python
# def group_step(rows):
#     own = (X[rows].T * (p * (1 - p))[rows]) @ X[rows] / N
#     return torch.linalg.solve(H_alpha - own, gradients[rows].sum(0) / N)
#
#
# check_group_step(group_step)
# ```
# </details>

# %% [markdown]
# ## References
#
# - R. Grosse et al., *Studying Large Language Model Generalization with Influence Functions*, 2023, arXiv 2308.03296.
#   Equations [1] to [6].
# - P. W. Koh, P. Liang, *Understanding Black-box Predictions via Influence Functions*, ICML 2017, arXiv 1703.04730: the
#   idea brought to machine learning, with leave-one-out refits beside it.
# - R. D. Cook, S. Weisberg, *Residuals and Influence in Regression*, 1982: leverage, and the closed form for leaving
#   one out.
# - F. R. Hampel, *The Influence Curve and Its Role in Robust Estimation*, JASA 1974: where the name comes from.
