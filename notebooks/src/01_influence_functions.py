# %% [markdown]
# # 01 · What would change if this example counted more?
#
# **The question.** A model was fitted to $N$ examples. Give one of them a little more weight, or take it away, and fit
# again: how do the weights move, and how does anything that is computed from the weights move? Refitting answers that,
# once per example. This notebook derives the formula that answers it for all examples without any refit, and then
# refits several hundred times to see whether the formula is true.
#
# **What you need to know.** Gradients, Hessians, the chain rule; how to solve a linear system; least squares. PyTorch
# is hardly needed until the last sections. Numbers in brackets are the equations of Grosse et al. 2023 (see the
# references).
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
y = ink[:8].mean(1)  # (8,)
_ = plots.images(digits.train.images[:8], [f"{v:.1f} %" for v in y], columns=8)
assert ((y > 0) & (y < 100)).all(), "pixels are −1 to 1: add 1 and halve before calling them a share"

# %% [markdown]
# The model is one number $\theta$, the same guess for every digit, with the loss
# $\ell_n(\theta) = \frac12(\theta - y_n)^2$. Minimising the mean loss gives the mean, $\theta^\star = \bar y$. Now let
# example $m$ count for more: add $\varepsilon\,\ell_m$ to the objective, and ask for the minimum again. Setting the
# derivative to zero,
#
# $$(\theta - \bar y) + \varepsilon\,(\theta - y_m) = 0 \qquad\Longrightarrow\qquad \theta^\star(\varepsilon) = \frac{\bar y + \varepsilon\, y_m}{1+\varepsilon}.$$
#
# This is a *response function*: turn the knob $\varepsilon$, and the optimum answers. Two positions of the knob have
# names. The mean loss gives every example the weight $1/N$, so $\varepsilon = -1/N$ takes example $m$ away, and
# $\varepsilon = +1/N$ counts it twice.

# %%
N, m = len(y), int(y.argmax())


def response(epsilon):
    return (y.mean() + epsilon * y[m]) / (1 + epsilon)


without, twice = torch.cat([y[:m], y[m + 1 :]]), torch.cat([y, y[m : m + 1]])
print(f"mean {y.mean():.3f}, without example {m}: {without.mean():.3f}, with it twice: {twice.mean():.3f}")
assert torch.isclose(response(-1 / N), without.mean()), "leaving out is ε = −1/N, not −1: the mean loss has weights 1/N"
assert torch.isclose(response(1 / N), twice.mean()), "counting twice is ε = +1/N"

# %% [markdown]
# The influence of example $m$ is the slope of this curve at $\varepsilon = 0$. Differentiate the fraction:
#
# $$\left.\frac{d\theta^\star}{d\varepsilon}\right|_{\varepsilon=0} = y_m - \bar y .$$
#
# The heavy digit pulls the mean up, by as much as it stands out. In the figure, look at how far the straight line,
# which is all that an influence function knows, follows the curve, and where the two marked points are.

# %%
epsilon = torch.linspace(-0.4, 0.6, 101)
tangent = y.mean() + epsilon * (y[m] - y.mean())
fig, ax = plt.subplots()
ax.plot(epsilon, response(epsilon), label="response θ*(ε)")
ax.plot(epsilon, tangent, "--", color=plots.GREY, label="tangent at ε = 0: the influence")
for knob, name in ((-1 / N, "left out"), (1 / N, "counted twice")):
    ax.plot(knob, response(knob), "o", color=plots.ORANGE)
    ax.annotate(name, (knob, response(knob)), xytext=(6, -14), textcoords="offset points", fontsize=8)
ax.set_xlabel("extra weight ε of one example (dimensionless)")
ax.set_ylabel("fitted ink θ* (per cent)")
ax.legend()
gap = (response(epsilon) - tangent).abs()
assert gap[epsilon.abs() <= 1 / N].max() < gap[[0, -1]].min() / 4, "a tangent is best near the point where it touches"

# %% [markdown]
# Between the marked points the line and the curve are close; further out they part. That is the whole subject in one
# picture: **an influence is a slope, and removing an example is a small finite step along the curve**. The rest of this
# notebook does the same for models whose response function cannot be written down, and keeps an eye on the gap.
#
# ## The response function in general
#
# A model with weights $\theta \in \mathbb R^D$ has a loss $\ell_n(\theta)$ for each example. The training objective is
# their mean, plus a penalty on the weights if there is one,
#
# $$\theta^\star = \arg\min_\theta\; \mathcal J(\theta), \qquad \mathcal J(\theta) = \frac1N\sum_{n=1}^N \ell_n(\theta) + R(\theta), \qquad [1]$$
#
# and the response to a change in the weight of example $m$ is
#
# $$\theta^\star(\varepsilon) = \arg\min_\theta\; \mathcal J(\theta) + \varepsilon\,\ell_m(\theta). \qquad [2]$$
#
# Note what stays as it is: the $1/N$ in front of the sum and the penalty $R$ do not change with $\varepsilon$. (Grosse
# et al. write $\mathcal L(z_m, \theta)$ for our $\ell_m(\theta)$, and leave $R$ out.)
#
# ## How to differentiate an argmin
#
# Nobody can write $\theta^\star(\varepsilon)$ down for a neural network. But we know an equation that it satisfies: at
# a minimum, the gradient is zero. Call that gradient $F$,
#
# $$F(\theta, \varepsilon) = \nabla\mathcal J(\theta) + \varepsilon\,\nabla\ell_m(\theta), \qquad F(\theta^\star(\varepsilon), \varepsilon) = 0.$$
#
# $F$ has $D$ components, and $\theta$ has $D$ unknowns: one equation for each. The **implicit function theorem** says
# when such equations define $\theta$ as a smooth function of $\varepsilon$, even though nobody can solve them. Every
# step below needs something, and the next notebook is about what happens to networks when they do not have it.
#
# | step | what it needs |
# |---|---|
# | **1.** $F(\theta^\star, 0) = 0$ | $\mathcal J$ differentiable, and $\theta^\star$ really a minimum of it (training was finished), with no constraint in the way |
# | **2.** Near $(\theta^\star, 0)$ there is exactly one curve $\theta(\varepsilon)$ with $\theta(0) = \theta^\star$ and $F = 0$ along it, and it has a derivative | $F$ continuously differentiable there: $\mathcal J$ and $\ell_m$ twice continuously differentiable. And $\partial F/\partial\theta = \nabla^2\mathcal J(\theta^\star) = H$ **invertible** |
# | **3.** The points of that curve are local minima of [2] | $H$ positive definite; then the Hessian of $\mathcal J + \varepsilon\ell_m$ stays so for small $\varepsilon$, by continuity |
# | **4.** They are *the* minima of [2] | Something global. For us: $\mathcal J + \varepsilon\ell_m$ strictly convex. With convex losses and a ridge penalty it is, for all $\varepsilon \ge -1/N$, because no example's weight is then negative |
# | **5.** The slope is [3] below | nothing more: differentiate $F(\theta(\varepsilon), \varepsilon) = 0$ |
#
# Step 5 in full. Along the curve $F$ is zero for every $\varepsilon$, so its total derivative is zero too. The variable
# $\varepsilon$ enters in two places, through $\theta(\varepsilon)$ and in front of $\nabla\ell_m$:
#
# $$0 = \frac{d}{d\varepsilon}F(\theta(\varepsilon),\varepsilon) = \Big(\nabla^2\mathcal J(\theta) + \varepsilon\,\nabla^2\ell_m(\theta)\Big)\frac{d\theta}{d\varepsilon} + \nabla\ell_m(\theta).$$
#
# At $\varepsilon = 0$ the term with the example's own Hessian drops out. (Remember it: it is the first thing that is
# missing when $\varepsilon$ is not small.) What is left is $H\,\frac{d\theta}{d\varepsilon} + \nabla\ell_m = 0$, and
# since $H$ is invertible,
#
# $$\boxed{\;\mathcal I_{\theta^\star}(z_m) = \left.\frac{d\theta^\star}{d\varepsilon}\right|_{\varepsilon=0} = -H^{-1}\,\nabla\ell_m(\theta^\star).\;} \qquad [3]$$
#
# **The change of sign.** The minus came from carrying $\nabla\ell_m$ to the other side. It says that more weight on an
# example moves the weights *downhill* on that example's loss, as a step of gradient descent would. $H^{-1}$ then asks
# how much all the others resist: where the objective is flat ($H$ small), the same push moves the weights far.
#
# For the mean of the eight inks: $H = 1$ and $\nabla\ell_m = \bar y - y_m$, so [3] gives $y_m - \bar y$ once more. For
# a step that is small but not infinitely small we walk along the tangent,
#
# $$\theta^\star(\varepsilon) - \theta^\star \approx \varepsilon\,\mathcal I_{\theta^\star}(z_m) = -\varepsilon\,H^{-1}\nabla\ell_m(\theta^\star). \qquad [4]$$
#
# ## From the weights to anything made of them
#
# Few people want to know what a weight does. They ask about an output, a margin, the loss on some query. All of these
# are functions $f(\theta)$ of the weights, and the chain rule is one more line, for any $f$ that is differentiable at
# $\theta^\star$:
#
# $$\mathcal I_f(z_m) = \left.\frac{d f(\theta^\star(\varepsilon))}{d\varepsilon}\right|_{\varepsilon=0} = \nabla f(\theta^\star)^\top\mathcal I_{\theta^\star}(z_m) = -\nabla f(\theta^\star)^\top H^{-1}\,\nabla\ell_m(\theta^\star). \qquad [5]$$
#
# $$f(\theta^\star(\varepsilon)) - f(\theta^\star) \approx \varepsilon\,\mathcal I_f(z_m). \qquad [6]$$
#
# The error of [4] and [6] is of second order in $\varepsilon$ (if everything has one more derivative). Two gradients
# and one matrix between them: every method in this course is about that matrix.
#
# ## Ridge regression: every step in closed form
#
# A real prediction problem, small enough to be exact: from the *upper* half of a digit, tell how much ink its *lower*
# half has. The upper half is averaged over a grid of 2 × 7 patches, as a share between 0 and 1; a last feature is
# always 1 and carries the bias. Three hundred digits.

# %%
N = 300
squares = ink[:N].reshape(N, 28, 28)
patches = torch.nn.functional.avg_pool2d(squares[:, None, :14], (7, 4)).flatten(1) / 100  # (300, 14)
X = torch.cat([patches, torch.ones(N, 1)], dim=1)  # (300, 15)
y = squares[:, 14:].mean((1, 2))  # (300,), per cent
alpha = 1e-5  # of the penalty ½ α ‖θ‖²
print("examples and features:", tuple(X.shape))
assert torch.isclose(patches[0].mean() * 100, squares[0, :14].mean()), "patches of equal size keep the mean"

# %% [markdown]
# With $\ell_n = \frac12 (x_n^\top\theta - y_n)^2$ and $R = \frac\alpha2\|\theta\|^2$, the objective is a quadratic:
#
# $$\nabla\mathcal J = H\theta - b, \qquad H = \tfrac1N X^\top X + \alpha I, \qquad b = \tfrac1N X^\top y, \qquad \theta^\star = H^{-1}b.$$
#
# $H$ has no eigenvalue below $\alpha$, so every condition in the table holds. The gradient of one example's loss is its
# residual $r_n$ times its features.

# %%
H = X.T @ X / N + alpha * torch.eye(X.shape[1])
theta = torch.linalg.solve(H, X.T @ y / N)  # (15,)
residual = X @ theta - y  # (300,), per cent
gradients = residual[:, None] * X  # (300, 15): row n is ∇ℓ_n
assert (gradients.mean(0) + alpha * theta).norm() < 1e-10, "not at the minimum: is α in H, and 1/N in both sums?"
print(f"ink of the lower half: spread {y.std():.1f}, residuals {residual.std():.1f} (per cent)")

# %% [markdown]
# The slow obvious way first: drop one row, solve again, three hundred times. The $1/N$ stays $1/N$, which is what [2]
# says at $\varepsilon = -1/N$.

# %%
refits = []
for n in range(N):
    keep = torch.arange(N) != n
    Xn, yn = X[keep], y[keep]
    refits.append(torch.linalg.solve(Xn.T @ Xn / N + alpha * torch.eye(15), Xn.T @ yn / N))
actual = torch.stack(refits) - theta  # (300, 15): what leaving out each example does to θ
print("weights change by at most", f"{100 * actual.norm(dim=1).max() / theta.norm():.1f} per cent of their norm")

# %% [markdown]
# And the prediction [4] with $\varepsilon = -1/N$: all three hundred at once, from one matrix and no refit. Two minus
# signs meet, one of [3] and one of $\varepsilon$, and make a plus: taking an example away moves the weights *uphill* on
# its loss.

# %%
influence_on_theta = -torch.linalg.solve(H, gradients.T).T  # (300, 15): row n is [3]
predicted = -1 / N * influence_on_theta  # [4] with ε = −1/N
cosine = torch.cosine_similarity(predicted, actual, dim=1)
print(f"smallest cosine between predicted and actual: {cosine.min():.5f}")
assert cosine.min() > 1 - 1e-9, "if the cosine is −1, one of the two minus signs was lost"

# %% [markdown]
# The *direction* is exactly right for each of the three hundred. Only the length can be wrong, and for ridge regression
# we can find out how wrong, by solving [2] for every $\varepsilon$.
#
# Write $\theta^\star(\varepsilon) = \theta^\star + \Delta$, and $x$, $r$ for the example's features and residual at
# $\theta^\star$. At $\theta^\star+\Delta$ the residual is $r + x^\top\Delta$, and
# $\nabla\mathcal J = H(\theta^\star+\Delta) - b = H\Delta$, because $H\theta^\star = b$. So the gradient of [2] is zero
# when
#
# $$H\Delta + \varepsilon\,x\,(r + x^\top\Delta) = 0 \qquad\Longrightarrow\qquad \Delta = -\varepsilon\,H^{-1}x\,(r + x^\top\Delta).$$
#
# The bracket is one unknown number, the example's *new* residual. Multiply by $x^\top$ from the left and add $r$ to get
# an equation for it alone:
#
# $$(r + x^\top\Delta) = r - \varepsilon\,(x^\top H^{-1}x)\,(r + x^\top\Delta) \qquad\Longrightarrow\qquad r + x^\top\Delta = \frac{r}{1+\varepsilon\,x^\top H^{-1}x},$$
#
# $$\Delta = \frac{-\varepsilon\,H^{-1}x\,r}{1+\varepsilon\,x^\top H^{-1}x} = \frac{\text{prediction [4]}}{1+\varepsilon\,x^\top H^{-1}x}.$$
#
# At $\varepsilon=-1/N$ the denominator is $1-h$ with the example's **leverage** $h = \frac1N x^\top H^{-1}x$, a number
# between 0 and 1. The prediction is short by exactly the factor $1-h$. This is the term $\varepsilon\,\nabla^2\ell_m$
# that we dropped: removing an example also removes *its own* resistance to being moved.

# %%
leverage = (X * torch.linalg.solve(H, X.T).T).sum(1) / N  # (300,)
exact = predicted / (1 - leverage)[:, None]
assert torch.allclose(exact, actual, rtol=1e-8, atol=1e-10), "at ε = −1/N the denominator is 1 − h, at +1/N it is 1 + h"
print(f"leverage: mean {leverage.mean():.3f}, largest {leverage.max():.3f}; their sum is {leverage.sum():.1f}")

# %% [markdown]
# The sum is nearly the number of features, 15; it would be 15 with $\alpha = 0$ (the sum is the trace of
# $H^{-1}\frac1N X^\top X$). So leverages average about $D/N$, and with more data per parameter the prediction is better
# across the board. What has a large one? Features far from the others', in a direction where few examples hold the fit
# in place. Here are the digits with most and least of it.

# %%
order = leverage.argsort(descending=True)
shown = torch.cat([order[:5], order[-5:]])
_ = plots.images(digits.train.images[:N][shown], [f"h = {leverage[n]:.2f}" for n in shown])
assert leverage[shown[0]] > 5 * leverage[shown[-1]], "sorted the wrong way round?"
assert ((leverage > 0) & (leverage < 1)).all(), "outside 0 to 1: a factor N is missing, or α"

# %% [markdown]
# The five on the left are wide or slanted, with ink in patches that are empty in most digits; the five on the right are
# middling in every way. Now the picture to remember: predicted against actual. The quantity is what leaving example $n$
# out does to the model's guess for that same digit, where leverage shows most. On the dashed line, the prediction is
# right in size and not only in order. Look at what leaves the line, and at its colour.

# %%
own_predicted, own_actual = (X * predicted).sum(1), (X * actual).sum(1)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True, sharey=True)
panels = (("first order [6]", own_predicted), ("divided by 1 − h", own_predicted / (1 - leverage)))
for ax, (title, x) in zip(axes, panels, strict=True):
    plots.against(ax, x, own_actual, what="change of own guess (per cent ink)", colour=None, c=leverage, cmap="viridis")
    ax.set_title(title)
fig.colorbar(axes[1].collections[0], ax=axes, label="leverage h")
short = 1 - own_predicted / own_actual
assert torch.allclose(short, leverage, atol=1e-8), "the missing share of the change is the leverage, example by example"

# %% [markdown]
# On the left, points of high leverage bend away from the line, always to the side of a larger actual change, and the
# further out the more: a point that pulled the fit towards itself hid part of its own residual. On the right, divided
# by $1-h$, every point is on the line. For ridge regression, then, there is nothing else to it: **the error of the
# influence function is leverage**.
#
# ## What ε, the sign and 1/N mean
#
# Before the next model, the conventions, because half of all confusion about influence scores is about units.
#
# - A **score** is a derivative, [5]: change of $f$ per unit of $\varepsilon$. It can be large, since $\varepsilon = 1$
#   would mean that the example counts as much as all the data together.
# - To delete an example, $\varepsilon = -1/N$: expect a change of $-\text{score}/N$. To have it twice:
#   $+\text{score}/N$.
# - The query function $f$ is called a **measurement**: something that one would like to see high, by default the
#   log-likelihood of the query's label, $-\ell$. Then score $> 0$ means that more weight on this example *raises* the
#   query's likelihood: a **proponent**. Score $< 0$: an **opponent**. Whoever takes the query's *loss* for $f$ gets the
#   other sign.
#
# In `inflib` the same ridge regression is a linear layer. Its curvature $C$ is the mean over the *examples* only, here
# $\frac1N X^\top X$, and whatever is added to the diagonal is the `damping`, an argument of the inverse. So the ridge
# penalty is a damping of $\alpha$.

# %%
from inflib import SquaredError, hessian, influence, predicted_change

model = torch.nn.Linear(14, 1)
with torch.no_grad():
    model.weight.copy_(theta[None, :14])
    model.bias.copy_(theta[14:])
train = [(patches, y[:, None])]
C = hessian(model, SquaredError(), train, progress=False)
assert torch.allclose(C.to_dense() + alpha * torch.eye(15), H), "C is the data's part of H; α comes in as damping"

# %% [markdown]
# `influence` wants the model, what it was trained for, training data, queries, the curvature; `measurement="logit"`
# asks about the output itself. It returns one row per query and one column per training example. With the training
# digits as their own queries, the diagonal is what we just plotted.

# %%
scores = influence(model, SquaredError(), train, train, C, damping=alpha, measurement="logit", progress=False)
change = predicted_change(scores, n_train=N)  # if each example were removed
assert torch.allclose(change, X @ predicted.T, atol=1e-9), "scores are −∇fᵀH⁻¹∇ℓ; removal multiplies them by −1/N"
assert torch.allclose(change.diagonal(), own_predicted, atol=1e-9), "the diagonal: each digit asked about itself"
print("scores:", tuple(scores.shape), "queries × training examples")

# %% [markdown]
# ## Logistic regression: four hundred points, four hundred refits
#
# Ridge regression is special, since its Hessian does not depend on $\theta$. The next model has none of that comfort:
# tell a 4 from a 9. Images are averaged to 7 × 7 pixels and get a 1 for the bias; four hundred examples. All of the
# course's queries that are a 4 or a 9 serve as queries; the model never sees them in training.


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
# The model says $p = \sigma(x^\top\theta)$ for the probability of a 9, with the loss $\ell = -\log p(\text{label})$.
# Two derivatives:
#
# $$\nabla\ell_n = (p_n - y_n)\,x_n, \qquad \nabla^2\ell_n = p_n(1-p_n)\,x_nx_n^\top, \qquad H = \frac1N\sum_n p_n(1-p_n)\,x_nx_n^\top + \alpha I.$$
#
# The losses are convex and $H$ has no eigenvalue below $\alpha$, so again every condition holds: there is one minimum,
# and Newton's method finds it to the last digit. We write it for many weightings of the examples at once. A row of $w$
# is one weighting, all ones the ordinary fit; a zero in place $n$ leaves example $n$ out.

# %%
alpha = 0.03


def fit(w, targets=y, steps=10):
    """Newton's method for (1/N) Σ w_n ℓ_n + ½ α ‖θ‖², for every row of w (M, N) at once: weights (M, 50)."""
    theta = torch.zeros(len(w), X.shape[1])
    for _ in range(steps):
        p = torch.sigmoid(theta @ X.T)  # (M, N)
        gradient = (w * (p - targets)) @ X / N + alpha * theta  # (M, 50)
        curved = (X.T * (w * p * (1 - p))[:, None, :]) @ X / N + alpha * torch.eye(X.shape[1])  # (M, 50, 50)
        theta = theta - torch.linalg.solve(curved, gradient)
    return theta, gradient.norm(dim=1).max()


everyone = torch.ones(1, N)
(theta,), norm = fit(everyone)
print(f"right on {((Xq @ theta > 0) == label_q.bool()).double().mean():.0%} of the queries")
assert norm < 1e-12, "Newton's method has not arrived: these numbers would measure the optimiser, not the influence"

# %% [markdown]
# First the theorem itself. Turn the knob by a tiny $\pm\varepsilon$, refit twice, and take the difference quotient:
# that is $d\theta^\star/d\varepsilon$ with no theory in it. It should equal $-H^{-1}\nabla\ell_m$. We try it on twenty
# examples.

# %%
p = torch.sigmoid(X @ theta)
gradients = (p - y)[:, None] * X  # (400, 50)
H = (X.T * (p * (1 - p))) @ X / N + alpha * torch.eye(50)
slope = -torch.linalg.solve(H, gradients.T).T  # (400, 50): [3] for every example

tiny = 1e-4
nudge = torch.zeros(20, N)
nudge[torch.arange(20), torch.arange(0, N, N // 20)] = N * tiny  # weights w are in units of 1/N
quotient = (fit(everyone + nudge)[0] - fit(everyone - nudge)[0]) / (2 * tiny)
error = (quotient - slope[:: N // 20]).norm() / quotient.norm()
assert error < 1e-5, "off by −1: the sign of [3]. Off by N: is the knob ε, or the weight Nε?"

# %% [markdown]
# The implicit function theorem holds, to the accuracy of the difference quotient. Now the finite step. Every one of the
# four hundred is left out and the model refitted; `inflib` has the same loop under the name `fit_linear`, for any
# linear model, and the two should agree.

# %%
from inflib import Bernoulli
from inflib.validation import fit_linear, left_out

refits, norm = fit(1 - torch.eye(N))  # row n leaves example n out
assert norm < 1e-12, "some refit has not converged"
theirs = fit_linear(Bernoulli(), X, y[:, None], alpha, left_out(N), start=theta[None]).theta  # (400, 1, 50)
assert torch.allclose(theirs[:, 0], refits, atol=1e-8), "same objective? the 1/N stays 1/N when an example goes"
actual = refits - theta  # (400, 50)

# %% [markdown]
# For every query $q$ and every training example, there is the predicted change of the query's logit $x_q^\top\theta$,
# by [6] with $\varepsilon=-1/N$, and the one that the refits show. Two numbers judge the prediction. The *correlation*
# over all pairs says whether the order is right, and the *slope* of actual against predicted whether the size is.


# %%
def agreement(predicted, actual):
    """Correlation, and the slope of the line through 0, over all pairs."""
    x, z = predicted.flatten(), actual.flatten()
    return torch.corrcoef(torch.stack([x, z]))[0, 1].item(), (x @ z / (x @ x)).item()


predicted_logit = Xq @ (-slope / N).T  # (100, 400)
actual_logit = Xq @ actual.T
r, size = agreement(predicted_logit, actual_logit)
print(f"{predicted_logit.numel()} pairs: correlation {r:.4f}, slope {size:.3f}")
assert r > 0.999, "a correlation near −1: the sign; a low one: is H at the minimum, with α in it?"
assert abs(size - 1) < 0.05, "a slope of N or 1/N: the units of ε"

# %% [markdown]
# Forty thousand predictions without one refit, and the refits agree: the order is practically perfect, and the size is
# right up to a few per cent. Those few per cent are all in one direction. We know the suspect. In the figure, see on
# the left one query against all training examples; on the right, each training example's own logit, where leverage
# bites hardest.

# %%
unsure = int((Xq @ theta).abs().argmin())  # the query nearest to the decision boundary
leverage = p * (1 - p) * (X * torch.linalg.solve(H, X.T).T).sum(1) / N  # (400,)
own_predicted, own_actual = (X * (-slope / N)).sum(1), (X * actual).sum(1)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
plots.against(axes[0], predicted_logit[unsure], actual_logit[unsure], what="change of a query's logit")
plots.against(axes[1], own_predicted, own_actual, what="change of own logit", colour=None, c=leverage, cmap="viridis")
fig.colorbar(axes[1].collections[0], ax=axes, label="leverage h (right)")
axes[0].locator_params(axis="x", nbins=5)
axes[0].set_title("the least certain query")
axes[1].set_title("every example on itself")
assert (own_actual / own_predicted).min() > 1, "every example's own change is larger than first order says"

# %% [markdown]
# The left cloud is a line. On the right, the ends bend away: the examples that move their own logit most move it
# further than predicted, and they are the ones with the lighter colour. The reason is as before. With
# $h = \frac1N p(1-p)\,x^\top H^{-1}x$, dividing by $1-h$ gives the first Newton step of the *refit's own* objective, in
# which the example's curvature is gone too (the algebra is that of the ridge, with $\sqrt{p(1-p)}\,x$ in place of $x$).
# For a quadratic that step was exact. Here it should at least straighten the picture.

# %%
straightened = predicted_logit / (1 - leverage)
r_newton, size_newton = agreement(straightened, actual_logit)
print(f"divided by 1 − h: correlation {r_newton:.5f}, slope {size_newton:.4f}")
one_step = theta + torch.linalg.solve(H - p[7] * (1 - p[7]) * torch.outer(X[7], X[7]) / N, gradients[7] / N)
assert torch.allclose(Xq @ (one_step - theta), straightened[:, 7]), "a Newton step removes the example from H as well"
assert abs(size_newton - 1) < abs(size - 1) / 5, "the correction makes it worse: 1 + h for 1 − h?"

# %% [markdown]
# The slope is now one to within a fraction of a per cent. So what remained was leverage again, and only a trace of it
# is left for $p(1-p)$ changing along the way.
#
# How much leverage there is, is in the hands of $\alpha$: the penalty holds the fit in place where the data do not. We
# repeat all refits for three more values. Look for the sum of the leverages growing as $\alpha$ falls, and the slope
# with it.

# %%
found = {}
for alpha in (0.1, 0.03, 0.01, 0.003):
    (th,), _ = fit(everyone)
    q = torch.sigmoid(X @ th)
    inverse = torch.linalg.inv((X.T * (q * (1 - q))) @ X / N + alpha * torch.eye(50))
    h = q * (1 - q) * (X @ inverse * X).sum(1) / N
    guess = Xq @ inverse @ ((q - y)[:, None] * X).T / N
    truth = Xq @ (fit(1 - torch.eye(N))[0] - th).T
    found[alpha] = (h.sum(), *agreement(guess, truth), agreement(guess / (1 - h), truth)[1])

# %%
print("alpha   sum of h   correlation   slope   slope after 1/(1-h)")
for alpha, (total, r, size, after) in found.items():
    print(f"{alpha:<7} {total:8.1f} {r:13.4f} {size:7.3f} {after:21.3f}")
sizes, repaired = [row[2] for row in found.values()], [row[3] for row in found.values()]
assert sizes == sorted(sizes), "less penalty, more leverage, larger slope"
assert max(abs(after - 1) for after in repaired) < 0.02, "1/(1 − h) repairs the slope at every α"

# %% [markdown]
# A tenth of the penalty, and the prediction is short by several times as much, although the correlation hardly notices.
# Keep this in mind for later chapters: a correlation near one says nothing about size. The last of these four, drawn
# for the least certain query: see which colour leaves the line first.

# %%
guess, truth = guess[unsure], truth[unsure]
fig, ax = plt.subplots(figsize=(4.8, 3.6))
plots.against(ax, guess, truth, what="change of a query's logit", colour=None, c=h, cmap="viridis")
fig.colorbar(ax.collections[0], ax=ax, label="leverage h")
ax.set_title("α = 0.003")
short = 1 - guess / truth  # the share of the change that is missing
assert short[h > h.quantile(0.9)].median() > 2 * short[h < h.quantile(0.5)].median(), "the bend is where h is large"

# %% [markdown]
# The light points, of high leverage, bend away on both sides, as in the ridge; the dark ones lie on the line. And a
# caution: with fewer examples than effective parameters, which is where neural networks live, leverages approach one
# and the first-order step for *removal* is no longer a small one.
#
# ## A logit, a margin, a loss
#
# Equation [5] takes any $f$. To see three of them, take a third class: 4, 7 or 9, with softmax regression. The weights
# are a matrix, 3 classes by 50 features, and the logits are $z = \Theta x$. For a query with label $c$:
#
# - the **logit** $z_c$;
# - the **margin** $z_c - \log\sum_{k\ne c}e^{z_k}$, the log odds of the right class against all the others;
# - the **log-likelihood** $\log p_c$, which is minus the loss and `inflib`'s default.
#
# We now leave the formulas to `inflib` and only refit. For a softmax layer the Hessian is that of the cross-entropy,
# and $\alpha$ is the damping as before.

# %%
from inflib import CrossEntropy

alpha = 0.03  # as at first
X3, y3, pictures3 = task(digits.train, [4, 7, 9], 450)
Xq3, yq3, pictures_q3 = task(digits.queries, [4, 7, 9])
full = fit_linear(CrossEntropy(), X3, y3, alpha).theta[0]  # (3, 50)
without = fit_linear(CrossEntropy(), X3, y3, alpha, left_out(450), start=full).theta  # (450, 3, 50)
shift = (without - full).flatten(1).norm(dim=1) / full.norm()
print(f"leaving one out moves the weights by {100 * shift.min():.2f} to {100 * shift.max():.1f} per cent")
assert (shift > 0).all(), "did the weightings reach the fit?"

# %%
model = torch.nn.Linear(49, 3)
with torch.no_grad():
    model.weight.copy_(full[:, :49])
    model.bias.copy_(full[:, 49])
train, queries = [(X3[:, :49], y3)], [(Xq3[:, :49], yq3)]
curvature = hessian(model, CrossEntropy(), train, progress=False)  # (150, 150)
slope3 = (model(X3[:, :49]).softmax(1) - torch.eye(3)[y3]).T @ X3 / len(X3) + alpha * full
assert slope3.norm() < 1e-9, "the linear layer is not at the minimum that fit_linear found"

# %% [markdown]
# One call for each measurement, and the same measurement taken of the 450 refits. Look for points on the identity line
# in all three panels, and compare their axes: the three ask about one model in different units.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4))
results = {}
for ax, name in zip(axes, ("logit", "margin", "log_likelihood"), strict=True):
    scores = influence(model, CrossEntropy(), train, queries, curvature, alpha, measurement=name, progress=False)
    before = CrossEntropy().measure(name, Xq3 @ full.T, yq3)  # (Q,)
    after = torch.stack([CrossEntropy().measure(name, Xq3 @ th.T, yq3) for th in without], dim=1)  # (Q, 450)
    results[name] = (scores, after - before[:, None])
    plots.against(ax, predicted_change(scores, len(X3)), results[name][1], what=f"change of {name.replace('_', '-')}")
    r, size = agreement(predicted_change(scores, len(X3)), results[name][1])
    ax.set_title(f"correlation {r:.4f}, slope {size:.2f}")
    assert r > 0.99, f"{name}: is the refit measured with the same function?"
    assert abs(size - 1) < 0.08, f"{name}: off by N? predicted_change divides by the number of training examples"

# %% [markdown]
# All three lie on the line, with the little extra steepness that leverage causes. The loss gets there although it is
# not linear in the weights: [5] only needs its gradient.
#
# The measurements are not independent. Since $\log p_c = -\log(1+e^{-\text{margin}})$, the chain rule gives
# $\nabla\log p_c = (1-p_c)\,\nabla\text{margin}$. So the score for the log-likelihood is the one for the margin, shrunk
# by how sure the model already is.

# %%
p_right = (Xq3 @ full.T).softmax(1).gather(1, yq3[:, None])  # (Q, 1)
by_margin, by_likelihood = results["margin"][0], results["log_likelihood"][0]
assert torch.allclose(by_likelihood, (1 - p_right) * by_margin, atol=1e-10), (
    "d log p / d margin is 1 − p of the right class"
)
largest = by_likelihood.abs().amax(1)
print(
    f"largest score of the surest query {largest[p_right.argmax()]:.2f}, of the least sure {largest[p_right.argmin()]:.2f}"
)
assert largest[p_right.argmin()] > 10 * largest[p_right.argmax()], (
    "confident queries should have small scores for log p"
)

# %% [markdown]
# This explains something that people meet in their first experiment: for many queries *nothing* seems to have any
# influence. A query that is already answered with near certainty has no log-likelihood left to gain. The margin has no
# such ceiling, which is why later notebooks often prefer it.
#
# ## Proponents and opponents
#
# Finally the pictures. We take the 4-or-7-or-9 query whose margin is nearest to zero, and show the training digits with
# the largest and the smallest scores for its margin. The caption gives the change expected *if that digit were
# removed*: proponents negative, opponents positive.

# %%
q = int(CrossEntropy().margin(Xq3 @ full.T, yq3).abs().argmin())
ranked = by_margin[q].argsort(descending=True, stable=True)
top, bottom, names = ranked[:7], ranked.flip(0)[:7], "479"
strip = torch.cat([top, bottom])
captions = [f"a {names[y3[n]]}: {predicted_change(by_margin[q, n], len(X3)):+.3f}" for n in strip]
pictures = [pictures_q3[q], *pictures3[top], pictures_q3[q], *pictures3[bottom]]
captions = ["the query", *captions[:7], f"it is a {names[yq3[q]]}", *captions[7:]]
_ = plots.images(pictures, captions, columns=8, size=1.05, title="proponents above, opponents below")
assert by_margin[q, top].min() > 0 > by_margin[q, bottom].max(), "score > 0 is a proponent"

# %% [markdown]
# Every proponent has the query's own label. Most opponents have another one: a digit that looks like the query but is
# called something else argues against it. Most, not all. An oddly written digit of the *same* class can be an opponent
# too, when fitting it takes weight off the very pixels that the query relies on. Are the signs true? The refits know.
# Among the pairs with the larger predicted changes, we count how often the actual change has the same sign.

# %%
others = (y3[bottom] != yq3[q]).sum()
assert (y3[top] == yq3[q]).all(), "a sign error puts other classes at the top"
assert 4 <= others < 7, "most of these opponents are of another class, not all"
guess, truth = predicted_change(by_margin, len(X3)), results["margin"][1]
large = guess.abs() > guess.abs().median()
same = (guess.sign() == truth.sign())[large].double().mean().item()
print(f"same sign in {100 * same:.1f} per cent of the pairs with the larger predictions")
assert same > 0.99, "near 0: the sign is flipped somewhere between score and removal"

# %% [markdown]
# ## Summary
#
# Counting an example a little more moves the optimum by $-H^{-1}\nabla\ell_m$ for each unit of weight, because along
# the curve of optima the gradient stays zero; the implicit function theorem supplies the curve if training is finished,
# the losses are smooth and $H$ is invertible. The chain rule carries this to any function of the weights. Removing an
# example is the step $\varepsilon=-1/N$ along the tangent, and the refits agree with it: correlations above 0.99 and
# sizes right to a few per cent, for logits, margins and losses. What is missing is leverage, the share of its own
# resistance that an example takes with it when it leaves. All of it was convex, converged and invertible; the next
# notebook takes these away one by one.
#
# ## Exercises
#
# Write each function in a new cell and call its check. The solution is folded away, and the cell after it runs it.
#
# ### 1. A wrong label (easy, 10 minutes)
#
# Training example $m$ of the 4-or-9 problem gets the *other* label. Predict the change of the weights. The check refits
# with the label flipped. Hint: it is two changes of weight at once.
#
# ```python
# def flipped(m):
#     """The change of θ (50,), from X, y, p, H and N as they stand above (for α = 0.03)."""
# ```


# %%
def check_flipped(answer):
    for m in (p - 0.5).abs().argsort()[:4].tolist():  # where neither label is obvious
        truth = fit(everyone, torch.where(torch.arange(N) == m, 1 - y, y))[0][0] - theta
        came = answer(m)
        assert came.shape == (50,), f"shape {tuple(came.shape)}, expected (50,)"
        ratio = (came @ truth / (truth @ truth)).item()
        assert ratio > 0, f"example {m}: the weights move the other way; the old label leaves, the new one comes"
        assert not 0.3 < ratio < 0.7, f"example {m}: {ratio:.2f} of the change; removing one label or adding the other?"
        assert abs(ratio - 1) < 0.15, f"example {m}: {ratio:.2f} times the actual change; in units of 1/N?"
    print("right: a flip is a removal and an addition")


# %% [markdown]
# <details><summary>Solution</summary>
#
# Take the old example away ($\varepsilon=-1/N$) and add the relabelled one ($\varepsilon=+1/N$). The gradients are
# $(p-y)x$ and $(p-(1-y))x$; their difference does not contain $p$: a flip moves the weights by $\pm\frac1N H^{-1}x$
# whatever the model thought.
#
# ```python
# def flipped(m):
#     old, new = (p[m] - y[m]) * X[m], (p[m] - (1 - y[m])) * X[m]
#     return -torch.linalg.solve(H, new - old) / N
#
#
# check_flipped(flipped)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def flipped(m):
    old, new = (p[m] - y[m]) * X[m], (p[m] - (1 - y[m])) * X[m]
    return -torch.linalg.solve(H, new - old) / N


check_flipped(flipped)

# %% [markdown]
# ### 2. What do all influences add up to? (medium, 15 minutes)
#
# Without a penalty, the scores of all training examples for any one query sum to zero, since $\sum_n\nabla\ell_n = 0$
# at the optimum. With the penalty they do not. Find their sum *without* using any example's gradient.
#
# ```python
# def total(gradient):
#     """Σ_n of the scores for a query with this ∇f (50,), from H, theta, alpha and N alone."""
# ```


# %%
def check_total(answer):
    for q in (0, 50, 99):
        truth, came = (slope @ Xq[q]).sum(), answer(Xq[q])
        assert not torch.isclose(came, truth / N), "the gradients SUM to −Nα θ; only their mean is −α θ"
        assert not torch.isclose(came, -truth), "two minus signs: one of [3], one of Σ∇ℓ = −Nα θ"
        assert torch.isclose(came, truth), f"query {q}: {came:.4f}, the scores sum to {truth:.4f}"
    print("right: without a penalty, what proponents give, opponents take")


# %% [markdown]
# <details><summary>Solution</summary>
#
# At the optimum $\frac1N\sum_n\nabla\ell_n + \alpha\theta^\star = 0$, so $\sum_n\nabla\ell_n = -N\alpha\theta^\star$
# and $\sum_n\mathcal I_f(z_n) = -\nabla f^\top H^{-1}(-N\alpha\theta^\star)$.
#
# ```python
# def total(gradient):
#     return N * alpha * gradient @ torch.linalg.solve(H, theta)
#
#
# check_total(total)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def total(gradient):
    return N * alpha * gradient @ torch.linalg.solve(H, theta)


check_total(total)

# %% [markdown]
# ### 3. A whole group leaves (harder, 20 minutes)
#
# To first order, the effect of removing a group is the sum of the single effects. But a group's leverages reinforce
# each other. Do *better than first order*: take the group's own curvature out of $H$ as well, as $1-h$ did for one
# example. The check removes the thirty examples that raise the unsure query's logit most.
#
# ```python
# def group_step(rows):
#     """The change of θ (50,) when all examples in `rows` leave, from H, X, p, gradients and N."""
# ```


# %%
def check_group_step(answer):
    rows = predicted_logit[unsure].argsort()[:30]  # removing these lowers the query's logit most
    keep = torch.ones(1, N).index_fill(1, rows, 0.0)
    truth = Xq[unsure] @ (fit(keep)[0][0] - theta)
    plain, came = predicted_logit[unsure, rows].sum(), Xq[unsure] @ answer(rows)
    print(f"logit: first order {plain:.2f}, yours {came:.2f}, refitted {truth:.2f}")
    assert came * truth > 0, "the sign: removal goes uphill on the group's loss"
    assert abs(came - truth) < abs(plain - truth) / 2, (
        "hardly better than the sum: subtract the group's part of H, over N"
    )


# %% [markdown]
# <details><summary>Solution</summary>
#
# The Newton step of the objective that is left: its gradient at $\theta^\star$ is minus the group's share, and its
# Hessian is $H$ without the group's share.
#
# ```python
# def group_step(rows):
#     own = (X[rows].T * (p * (1 - p))[rows]) @ X[rows] / N
#     return torch.linalg.solve(H - own, gradients[rows].sum(0) / N)
#
#
# check_group_step(group_step)
# ```
# </details>


# %% jupyter={"source_hidden": true}
def group_step(rows):
    own = (X[rows].T * (p * (1 - p))[rows]) @ X[rows] / N
    return torch.linalg.solve(H - own, gradients[rows].sum(0) / N)


check_group_step(group_step)

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
