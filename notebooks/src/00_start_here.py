# %% [markdown]
# # 00 · What is an influence query?
#
# **The question.** A model gave an answer. Which of the examples that it was trained on made it answer like that? An *influence query* asks
# exactly this of one answer, and gets a number for every training example. This notebook asks one such query in a few lines of code and looks at what
# comes back. Then it hands you a sheet to draw on and a browser to click in. In between it checks that the numbers are what the formula says.
#
# **What you need to know.** PyTorch, and what a gradient is. Everything else is derived in the notebooks that follow. Symbols: [one table](notation.md).
#
# **Time.** About 15 minutes to read; it runs in less than half a minute on two CPU cores. In JupyterLab: *Run → Run All Cells*.

# %%
import torch
from matplotlib import pyplot as plt

from inflib import CrossEntropy, TrainIndex, contribution, damping_of, influence, load
from inflib.lab import exercise, load_checkpoint, mlp, mnist_5k, shipped_checkpoint
from inflib.widgets import DrawDigit, ImageBrowser, plots, three_methods

torch.set_num_threads(1)
plots.use_style()

# %% [markdown]
# ## A model, and a mistake that it makes
#
# The model is a small network, 784 → 64 → 64 → 10, trained on 4,500 handwritten digits from MNIST. It ships with the course, and so do the digits. Another
# 500 digits were kept away from the training: those are our queries. We count how many of them the model gets wrong, and make sure that no query is a training digit.

# %%
digits = mnist_5k()
model = mlp(dtype=torch.float64)  # double precision: the same digits are printed on every machine
load_checkpoint(shipped_checkpoint("mnist_mlp"), model, data=(digits.train.inputs, digits.train.labels))

p = model(digits.queries.inputs.double()).softmax(-1).detach()  # (500, 10) probabilities
wrong = (p.argmax(-1) != digits.queries.labels).nonzero().ravel()  # rows of the misclassified queries
print(f"{len(digits.train):,} training digits; {len(wrong)} of {len(digits.queries)} queries are misclassified")
assert not set(digits.train.index) & set(digits.queries.index), "a query was trained on: the split is broken"

# %% [markdown]
# One of these mistakes is row 225 of the queries, MNIST #2209. Look at the picture before you look at the bars, and decide which digit it is.

# %%
q = 225
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.4), width_ratios=[1, 2])
left.imshow(digits.queries.images[q], cmap="gray_r")
left.set_axis_off()
right.bar([str(c) for c in range(10)], p[q])
right.set(xlabel="digit", ylabel="probability", ylim=(0, 1))
seen = (digits.queries.labels[q].item(), p[q].argmax().item())
assert seen == (5, 6), f"the text below speaks of a 5 read as a 6, this query is {seen}"

# %% [markdown]
# A plain 5, and the model is almost certain that it is a 6. Nothing in the training program says so: whatever makes this model see a 6, it learned
# from its training digits. So: *from which ones?*
#
# ## Ask
#
# For a query with the measurement $m$ (here the log-likelihood $\log p(5)$ of the right label) the score of training digit $n$ is
#
# $$\text{score}(n) = \nabla m^\top\,(C+\lambda I)^{-1}\,(-\nabla \ell_n).$$
#
# Read it from the right. $-\nabla\ell_n$ is the direction in which digit $n$ pulls the weights during training. $(C+\lambda I)^{-1}$ turns that pull into the displacement that the
# weights end up with, all other digits holding against it. $C$ is the curvature of the training loss, and the damping $\lambda$ keeps the inverse tame. $\nabla m$ says what such a displacement does to the
# measurement. A positive score makes $n$ a **proponent**: counting it more would raise $\log p(5)$. A negative score makes it an **opponent**.
#
# The one hard part is $C$, a matrix with 55,050 rows. We load an approximation of it, **EK-FAC**, that was fitted beforehand and ships with the course. Notebooks 03 to 05 derive it. Below, look
# for one line for each layer of the network.

# %%
objective = CrossEntropy()
train = digits.train.batches(dtype=torch.float64)
query = digits.queries[[q]].batches(dtype=torch.float64)
curvature = load(shipped_checkpoint("mnist_mlp_ekfac"), model)
curvature

# %% [markdown]
# The shapes are those of each layer's weights, with one column more for the bias. Each layer has a λ of its own, a tenth of its mean eigenvalue. (What *expected labels* are, notebook 03 tells.) Now the query itself, which is one line. A score tells how fast the
# measurement changes with the example's weight. Divided by the number of training digits it becomes the digit's **contribution**. That is what the measurement
# is expected to lose if the digit is taken out of the training set, in nats, and it has the sign of the score. Its size has not been checked by anyone: read the
# numbers as an order (notebooks 06 and 07 check sizes, and find them too large). Look at both columns.

# %%
scores = influence(model, objective, train, query, curvature)[0]  # (4500,)
given = contribution(scores, n_train=len(digits.train))  # to log p(5), by each training digit
top, bottom = scores.topk(8).indices, (-scores).topk(8).indices

for name, row in (("strongest proponent", top[0]), ("strongest opponent ", bottom[0])):
    print(
        f"{name}  a {digits.train.labels[row]}   score {scores[row]:+8.0f}   contribution {given[row]:+.2f} nats, order only"
    )
assert given[top].min() > 0 > given[bottom].max(), "a proponent contributes something: is the sign flipped?"

# %% [markdown]
# The strongest proponent is a 5, the strongest opponent a 6. Taking the 5 away should make the model even more wrong, and taking the 6 away less. What do they
# look like? Above, the eight strongest proponents; below, the eight strongest opponents. Each caption gives the digit's contribution to $\log p(5)$, its label, and its place in MNIST.

# %%
rows = torch.cat([top, bottom])
captions = [f"{given[row]:+.2f}  a {digits.train.labels[row]}\n#{digits.train.index[row]}" for row in rows]
_ = plots.images(digits.train.images[rows], captions, columns=8)
fives, sixes = (digits.train.labels[top] == 5).sum().item(), (digits.train.labels[bottom] == 6).sum().item()
print(f"{fives} of 8 proponents are labelled 5, {sixes} of 8 opponents are labelled 6")
assert min(fives, sixes) > 4, "neither label stands out: are these rows of the training digits?"
assert 6 in digits.train.labels[top] and 5 in digits.train.labels[bottom], "the text below speaks of both"

# %% [markdown]
# The proponents are mostly fives and the opponents mostly sixes, as one would hope. But there is a 6 among those that *helped* the 5, of all digits, and there are fives among those that *hurt* it. And resemblance? The
# fourth proponent has the broad flat foot of our query, most of the others have not. That is worth remembering: influence is not similarity, and it is not agreement of labels.
#
# ## Draw one yourself
#
# `influence` went through all training digits for one query. An *index* does that once and keeps what is needed. Any further query, another damping, or some of the layers only, is then
# answered at once. The numbers are the same, and the assertion holds us to that.

# %%
index = TrainIndex.build(model, objective, train, curvature)
assert torch.allclose(index.influence(model, objective, query)[0], scores, rtol=1e-9), "rebuild the index"
methods = three_methods(model, objective, train, curvature)
print(f"an index of {len(index):,} digits; methods: {', '.join(methods)}")

# %% [markdown]
# Fast enough for a toy: here is a sheet of paper. The query that we asked about lies on it, and the model reads it exactly as it did above. Below it stand the training digits that speak for the model's answer, and those that speak against it.

# %%
sheet = DrawDigit(model, objective, index, digits.train, curvatures=methods, drawing=digits.queries.images[q])
same = dict(sheet.answer.subject.predictions)["6"]
assert abs(same - p[q, 6].item()) < 1e-9, "the sheet should be read as the query itself was"
sheet

# %% [markdown]
# *(Without a running kernel, for instance on GitHub, you see a still of it. `make demo` opens the sheet alone on a page, for somebody who wants no code.)* Things to try, with mouse, finger or keyboard:
#
# 1. **Mend the 5.** Where is the least ink that makes the model say 5? Did the opponents of its 6 tell you where?
# 2. **Clear the sheet and draw your own 7**, once with a bar and once without. Are the proponents' bars where yours is?
# 3. **Draw no digit at all**: a star, a letter. The model answers nonetheless. Do its proponents tell you that it is guessing?
# 4. **Ask about another class** than the one predicted: who in the training set would have it read your 7 as a 1?
#
# ## Check
#
# Pictures like these convince too easily, so let us check that the numbers are what the formula says. `influence` never builds a gradient. We build two, with
# autograd: the query's and the strongest proponent's, each layer's weights and bias side by side.


# %%
def gradients(x, y):
    """∇ log p(y | x) of one image, as {layer: (1, o, i + 1)}; the bias is the last column."""
    model.zero_grad()
    model(x.double()[None]).log_softmax(-1)[0, y].backward()
    both = {name: (getattr(model, name).weight.grad, getattr(model, name).bias.grad) for name in curvature.layers}
    return {name: torch.cat([w, b[:, None]], dim=1)[None] for name, (w, b) in both.items()}


# %% [markdown]
# Then the formula, from left to right, with the curvature's own `solve` in the middle. One sign needs care. The log-likelihood is *minus* the loss, so $\nabla m$ and the
# pull $-\nabla\ell_n$ both come out of the same function without a sign of their own. What to look for: two equal numbers.

# %%
n = top[0].item()
grad_m = gradients(digits.queries.inputs[q], digits.queries.labels[q])
pull = gradients(digits.train.inputs[n], digits.train.labels[n])  # −∇ℓ_n
displacement = curvature.solve(pull)  # (C + λI)⁻¹ (−∇ℓ_n)
by_layer = {name: (grad_m[name] * displacement[name]).sum().item() for name in curvature.layers}
print(f"by hand {sum(by_layer.values()):.2f}, by influence {scores[n]:.2f}")
assert abs(sum(by_layer.values()) / scores[n].item() - 1) < 1e-9, "they differ: is the bias the last column?"

# %% [markdown]
# Equal, to better than nine digits. The score is also a sum over the layers, so one can ask where in the network an influence sits. And there is a case where the sign is known
# beforehand. Asked about *itself*, no training digit can be its own opponent, for $\nabla\ell^\top(C+\lambda I)^{-1}\nabla\ell$ is a square. Both are checked here.

# %%
kept = influence(model, objective, train, query, curvature, keep=("layer",))[0]  # (4500, 3)
own = influence(model, objective, train, digits.train[[n]].batches(dtype=torch.float64), curvature)[0, n]
print({name: f"{share:+.0f}" for name, share in zip(curvature.layers, kept[n].tolist(), strict=True)})
assert torch.allclose(kept.sum(-1), scores, rtol=1e-9), "the layers do not add up: is each damped by its own λ?"
assert own > 0, "a training digit raises its own likelihood: the sign is wrong"

# %% [markdown]
# For this pair, most of the influence comes through the first layer, the one that looks at pixels.
#
# ## Ask anything
#
# The sheet asks about what you draw. A browser asks about the 500 digits that were kept away from the training, and turns questions round. Three methods are on offer, on the sheet as well. They differ in the matrix $C$: EK-FAC; its predecessor **K-FAC**; and no matrix at all, the plain **gradient dot product**. Here is the browser, open at our query.

# %%
browser = ImageBrowser(model, objective, index, digits.train, digits.queries, curvatures=methods, query=q)
browser

# %% [markdown]
# The control *Measured* chooses $m$, and *Damping* multiplies each layer's mean eigenvalue Λ. The number after # is a digit's place in MNIST's own training set. Things to try:
#
# 1. **Step through the misclassified queries.** Are the opponents of the class that the model chose instead?
# 2. **Lift that filter and find a query without influences**: where the model is certain, all numbers are tiny, although the bars are as long as ever. Why? (Its $\nabla m$ has almost vanished.)
# 3. **Click on a proponent.** You see the queries that this training digit influences most. Does it help one query only, or a whole family? Click on one of them to go on from there.
# 4. **Drag the damping** from one end to the other and watch which digits stay. Then do the same at *Layers: out*.
# 5. **Measure the log odds** in place of the log-likelihood. Every picture stays, only the numbers change, and most where the model is certain. Why? (The gradient is $\nabla\log p/(1-p)$.)
# 6. **Ask "why not a 6?"**: choose 6 at *Ask about*. Which digits taught the model to see a 6 here, and are they this 5's opponents?
# 7. **Change the method.** Do the pictures get any less convincing?
#
# ## What the pictures show, and what they do not
#
# The last question has an uncomfortable answer. At equal damping, how many of EK-FAC's ten strongest proponents do the other methods agree on? And how many of each method's ten carry the query's label? If a label in common were a sign
# of quality, which method would you choose?

# %%
equal = damping_of(curvature, 0.1)  # {layer: λ}, the same numbers for both curvatures
ten = {}
for name, damping in {"EK-FAC": equal, "K-FAC": equal, "gradient dot product": 0.0}.items():
    found = index.influence(model, objective, query, methods[name], damping)[0].topk(10).indices.tolist()
    ten[name] = set(found)
    common, own_label = len(ten[name] & ten["EK-FAC"]), (digits.train.labels[found] == 5).sum().item()
    print(f"{name:20}  {common:2} of 10 in common with EK-FAC, {own_label:2} of 10 labelled 5")
assert set(top.tolist()) <= ten["EK-FAC"], "the same question has got another answer"

# %% [markdown]
# If a label in common were a sign of quality, the gradient dot product would win: all ten of its proponents are fives. Yet it agrees with EK-FAC on four of them only, so at least one of the
# two is wrong about the rest. The more convincing picture is no evidence against the other. EK-FAC and K-FAC agree on nine of ten, which is no evidence either: both cut the layers apart and use one basis, and only the eigenvalues differ.
#
# So what *do* the pictures show? The training digits whose removal is predicted to matter most. The prediction assumes a small change, a model at its optimum, and a curvature made of two small factors for
# each layer. They do not show:
#
# - **that the prediction holds.** Retraining without a digit tests it. Notebook 01 does that for simple models; for networks it is the business of notebook 09.
# - **the whole.** The browser says below each heading how much of all positive, or negative, influence is in sight. For our query it is less than a quarter, in eight digits of two thousand.
# - **more than this one network.** The same training program with another seed makes another network, with mistakes and influences of its own.
# - **similarity.** Some proponents look like the query, others do not, and a neighbour in pixels may have no influence at all.
#
# ## The map of the course
#
# | notebook | its question |
# |---|---|
# | 00 Start here (you are here) | What is an influence query? |
# | [01 Influence functions](01_influence_functions.ipynb) | What would change if this example counted more? |
# | [02 When the Hessian fails](02_when_the_hessian_fails.ipynb) | Why not just invert the Hessian? |
# | [03 Hooks and gradients](03_hooks_and_gradients.ipynb) | Where do the per-example gradients come from? |
# | [04 K-FAC](04_kfac.ipynb) | How can a d × d matrix be inverted at all? |
# | [05 EK-FAC](05_ekfac.ipynb) | What does the eigenvalue correction buy? |
# | [06 Sequences](06_sequences.ipynb) | What changes for a language model? |
# | [07 MNIST](07_mnist.ipynb) | Which digits taught it this? |
# | [08 Transformer](08_transformer.ipynb) | Which sentences taught it this? |
# | [09 Does it predict retraining?](09_does_it_predict_retraining.ipynb) | Should I believe it? |
# | [10 What goes wrong](10_what_goes_wrong.ipynb) | How would I know it is broken? |
# | [11 Scaling up](11_scaling_up.ipynb) | What does it cost on my model? |
# | [12 Your own model](12_your_own_model.ipynb) | How do I use it on mine? |
#
# ## Summary
#
# An influence query asks which training examples raised or lowered what a model says about one input, and answers with a signed number for each of them. The number is a product of three things:
# the training example's pull on the weights, the inverse curvature that turns the pull into a displacement, and the query's gradient. Divided by the number of training examples it predicts what the
# example's removal would do. With an index, a new query or damping costs no pass over the training data, nor does another method in the same basis, once fitted. That is what makes a browser possible. Whether the prediction is *true* is another
# question, and no picture answers it.
#
# ## Exercises
#
# Write your answer in place of the `...` and run the cell. The check answers in one sentence; its source is folded
# above it, the solution below. *Run All* runs no solution.
#
# ### 1. Ten at once (easy, 5 minutes)
#
# To first order, the effects of removals add up. Suppose that the ten strongest *opponents* of our query were all taken out of the training set. By how many nats would its $\log p(5)$ rise, if these sizes could be believed? Set
# `together` to that number, from `scores` as it stands above.


# %% jupyter={"source_hidden": true}
@exercise
def check_together(together):
    truth = -scores.sort().values[:10].sum().item() / 4500
    assert together > 0, "opponents leave, so log p(5) rises by minus what they contribute"
    assert together < 1000, "that is a score; a removal is a step of ε = −1/N"
    assert abs(together - truth) < 5e-3 * truth, f"{together:.3f}, expected {truth:.3f}: are they ten?"
    return f"right: {together:+.1f} nats, and log p(5) is {p[q, 5].log():.1f} now"


# %%
together = ...  # your answer
check_together(together)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# ten_strongest = (-scores).topk(10).indices
# together = -contribution(scores[ten_strongest], n_train=len(digits.train)).sum().item()
# check_together(together)
# ```
#
# What the opponents contribute is negative, so the sum of their contributions leaves with its sign turned round. It exceeds what there is to gain: a log-likelihood ends at 0. A first-order prediction knows nothing of that, and EK-FAC's sizes are too large besides: trust signs and order before sizes.
# </details>

# %% [markdown]
# ### 2. The digit that does most harm (medium, 10 minutes)
#
# Which single training digit lowers the log-likelihoods of *all misclassified queries together* the most? Set `worst` to its row. Influence on a sum is the sum of the influences, and `index` and `wrong` are all you need.


# %% jupyter={"source_hidden": true}
@exercise
def check_worst(worst):
    totals = index.influence(model, objective, digits.queries[wrong].batches(dtype=torch.float64))  # (33, 4500)
    flat = int(totals.argmin()) % len(index)
    totals = totals.sum(0)
    assert worst != totals.argmax(), "that one helps most: harm is negative"
    assert worst != flat or worst == totals.argmin(), "that one does most harm to ONE query: sum over the queries first"
    assert worst == totals.argmin(), f"row {worst} has {totals[worst]:.0f}, the lowest total is {totals.min():.0f}"
    return f"right: MNIST #{digits.train.index[worst]}, labelled {digits.train.labels[worst]}"


# %%
worst = ...  # your answer
check_worst(worst)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# misclassified = digits.queries[wrong].batches(dtype=torch.float64)
# worst = index.influence(model, objective, misclassified).sum(0).argmin().item()
# check_worst(worst)
# _ = browser.ask_back(worst)  # and look at it: scroll up
# ```
# </details>

# %% [markdown]
# ### 3. What is left at the other end of the slider? (medium, 15 minutes)
#
# With a very large damping, $(C+\lambda I)^{-1}$ becomes $I/\lambda$, and EK-FAC's scores become proportional to gradient dot products. Write `closeness(damping)`: how our query's EK-FAC scores at this `damping` correlate
# with its gradient dot products, over the 4,500 training digits. The check turns the damping up until nothing but the dot product should be left.


# %% jupyter={"source_hidden": true}
@exercise
def check_closeness(closeness):
    usual, huge = float(closeness(0.0004)), float(closeness(1e6))  # of hidden1's mean eigenvalue a tenth and a bit
    assert usual < 0.99, f"{usual:.3f} at a usual damping: are both scores from the same method?"
    assert abs(huge - 1) < 1e-6, (
        f"{huge:.3f} in the limit: it wants the same λ in every layer, not a multiple of its mean"
    )
    return f"right: correlation {usual:.2f} at damping 0.0004, and 1 in the limit"


# %%
def closeness(damping):
    """The correlation of two rows of 4,500 scores, at one damping for all layers."""
    return ...  # your answer


check_closeness(closeness)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def closeness(damping):
#     damped = index.influence(model, objective, query, curvature, damping)[0]
#     dot = index.influence(model, objective, query, methods["gradient dot product"])[0]
#     return torch.corrcoef(torch.stack([damped, dot]))[0, 1]
#
#
# check_closeness(closeness)
# ```
#
# So the damping slider is a dial between two methods. In the browser each layer's λ is a multiple of its own mean eigenvalue, so that the slider's far end weights the layers unequally.
# </details>


# %% [markdown]
# ### 4. The smallest model (easy, 10 minutes, pencil and paper)
#
# A model has one weight $\theta$ and two training examples, with losses $\ell_1 = \tfrac12(\theta-1)^2$ and $\ell_2 = \tfrac12(\theta-3)^2$. Training ends at $\theta = 2$, where their mean is smallest. The measurement is the weight itself, $m = \theta$. Work out
# the contribution of the second example, without damping: $\nabla m$, the curvature $C$ of the mean loss, the pull $-\nabla\ell_2$, and then score divided by $N$. Set `contributed` to it. Then leave the second example out for real: what does $m$ lose?


# %% jupyter={"source_hidden": true}
@exercise
def check_contributed(contributed):
    assert contributed != 1, "1 is the score, and what leaving it out really takes away; the contribution is score/N"
    assert contributed != -0.5, "the second example pulls the weight up to 3: it is a proponent of a large weight"
    assert contributed == 0.5, "∇m, C and the pull are all 1 here, and N is 2"
    return (
        "right: 0.5, and the weight really falls from 2 to 1, by twice as much: one of two examples is no small change"
    )


# %%
contributed = ...  # your number
check_contributed(contributed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\nabla m = 1$. The mean loss $\tfrac12(\ell_1 + \ell_2)$ has the second derivative $C = 1$. The pull is $-(\theta - 3) = 1$. So the score is $1\cdot 1\cdot 1 = 1$ and the contribution is $1/2$.
# Without the second example training ends at $\theta = 1$, so $m$ really loses 1. With one example gone, those that are left hold the weights less tightly, by $(N-1)/N$. For one of 4,500 digits that is nothing; for one of two it is half.
#
# ```python
# contributed = 1 / 2
# check_contributed(contributed)
# ```
# </details>


# %% [markdown]
# ## References
#
# - R. Grosse et al., *Studying Large Language Model Generalization with Influence Functions*, 2023, [arXiv 2308.03296](https://arxiv.org/abs/2308.03296): the method, at the scale of language models.
# - P. W. Koh, P. Liang, *Understanding Black-box Predictions via Influence Functions*, ICML 2017, [arXiv 1703.04730](https://arxiv.org/abs/1703.04730): the idea brought to neural networks.
# - N. Rimsky, *Influence functions: why, what and how*, 2023: the MNIST experiment that this course redoes. Its program: [nrimsky/InfluenceFunctions](https://github.com/nrimsky/InfluenceFunctions).
