"""Wrong answers to the exercises, by notebook: the code, and what the check's one sentence has to name.

They run after the notebook and its solutions, so a solution can be spoilt in place of written anew.
"""

from __future__ import annotations

WRONG: dict[str, list[tuple[str, str]]] = {
    "00_start_here": [
        ("check_together(-together)", "minus what they contribute"),
        ("check_together(4500 * together)", "a removal is a step"),
        ("check_together(together / 2)", "are they ten"),
        ("check_worst(int(index.influence(model, objective, misclassified).sum(0).argmax()))", "helps most"),
        ("check_worst(int(index.influence(model, objective, misclassified).argmin()) % 4500)", "ONE query"),
        ("check_worst(0)", "the lowest total is"),
        ("check_closeness(lambda damping: 1.0)", "from the same method"),
        ("check_closeness(lambda damping: 0.9)", "in the limit"),
        ("check_contributed(1)", "the contribution is score/N"),
        ("check_contributed(-0.5)", "it is a proponent"),
        ("check_contributed(2)", "N is 2"),
    ],
    "01_influence_functions": [
        ("check_flipped(lambda n: -flipped(n))", "the other way"),
        ("check_flipped(lambda n: flipped(n) / 2)", "removing one label or adding the other"),
        ("check_flipped(lambda n: N * flipped(n))", "in units of 1/N"),
        ("check_flipped(lambda n: flipped(n)[None])", "shape (1, 50), expected (50,)"),
        ("check_total(lambda gradient: total(gradient) / N)", "only their mean"),
        ("check_total(lambda gradient: -total(gradient))", "two minus signs"),
        ("check_total(lambda gradient: 2 * total(gradient))", "the scores sum to"),
        ("check_leverages(3)", "without a penalty"),
        ("check_leverages(0.7292)", "the share that the penalty holds"),
        ("check_leverages(3.6458)", "tr H_α⁻¹"),
        ("check_leverages(2)", "not the sum"),
        ("check_group_step(lambda rows: -group_step(rows))", "the sign"),
        ("check_group_step(lambda rows: torch.linalg.solve(H_alpha, gradients[rows].sum(0) / N))", "still holds"),
        ("check_group_step(lambda rows: 2 * group_step(rows))", "hardly better"),
    ],
    "05_ekfac": [
        ("check_solve_out(lambda V, λ: solve_out(V.mT.mT, -λ))", "another mistake"),
        (
            "check_solve_out(lambda V, λ: ek.Q_S['out'].T @ V @ ek.Q_A['out'] / (ek.eigenvalues['out'] + λ))",
            "rotate back",
        ),
        ("check_unnoticed(lambda: (1.0, 0.0))", "no error in out"),
        ("check_best_in(lambda U: U @ torch.diag(Λ_kfac.flatten()) @ U.T)", "best is uᵀGu"),
        ("check_covered(1 - 10 / 512)", "one side only"),
    ],
    "06_sequences": [
        (
            "check_query(lambda prompt, answer: (torch.tensor([prompt + answer]), query(prompt, answer)[1]))",
            "for every position",
        ),
        (
            "check_query(lambda prompt, answer: (query(prompt, answer)[0], torch.tensor([prompt[1:] + answer])))",
            "LAST word",
        ),
        ("check_in_two_parts(lambda: (ask('. the cat', 'eats'), ask('. the cat', 'fish')))", "GIVEN the first"),
        ("check_signs(lambda generator: torch.ones(6, 8, 60))", "draw them"),
        (
            "check_signs(lambda generator: torch.randint(2, (6, 1, 60), generator=generator).expand(6, 8, 60) * 2.0 - 1)",
            "classes",
        ),
        ("check_slopes(lambda step: slopes(0.0))", "the step was not used"),
        ("check_lost(1 / 2 - 1 / 9)", "the rate again"),
    ],
}
