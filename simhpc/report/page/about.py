"""What the analyses are called and what they are about, in the order of the report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class About:
    """An analysis for people.

    Attributes:
        makes: the command that does it.
        files: its tables beside NAME.csv.
        names: what keys of its JSON file are called; others are called by the key.
        has_figure: whether its figure is shown; the report has drawings of its own of the clusters.
    """

    title: str
    explanation: str = ""
    makes: str = "simhpc analyze"
    files: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    has_figure: bool = True


ABOUT = {
    "clusters": About(
        "Clusters",
        "Groups of alike models, by spectral clustering of the matrix; stability says how sure the method is of each.",
        files=("coassignment.csv", "cluster_components.csv"),
        names={
            "n_clusters": "number of clusters",
            "chosen_by": "number chosen by",
            "k_by_silhouette": "number by the silhouette",
            "k_by_eigengap": "number by the eigengap",
            "choices": "What speaks for each number of clusters",
            "clusters": "Clusters, and the components that set them apart",
            "n_pairs_below_0": "pairs of negative SAT, counted as 0",
        },
        has_figure=False,
    ),
    "importance": About(
        "Component importance",
        "Which components make two models alike: how much worse a regression predicts SAT without each of them.",
        names={
            "r2_in_sample": "R² in sample",
            "r2_held_out": "R², one or both models held out",
            "r2_both_held_out": "R², both models held out",
            "n_pairs": "pairs",
            "n_pairs_unknown": "pairs of unknown SAT",
            "ranking": "most important in sample",
        },
    ),
    "ensembles": About(
        "Ensembles",
        "How much better the mean of several models is than each of them, against how alike its members are.",
        names={
            "n_images": "images",
            "sizes": "Ensembles of each size",
            "n_ensembles": "ensembles",
            "n_possible": "possible",
            "mean_error_reduction": "error reduction (share)",
            "mean_all_wrong_share": "images that all get wrong (share)",
            "share_better_than_best_member": "better than the best member (share)",
            "trends": "Spearman's rank correlations, and partial ones given the members' mean accuracy",
            "clusters": "Members of different clusters minus members of one",
        },
    ),
    "strategies": About(
        "Training strategies",
        "How alike models are that differ in one thing only, by what that thing is; minus architecture: and how much "
        "more alike than models of different architectures.",
        names={"kinds": "By what the models of a pair differ in", "groups": "Groups of models"},
    ),
    "measures": About(
        "Other measures",
        "How far SAT and other measures of the same models agree on which pairs are alike.",
        files=("measure_correlations.csv",),
        names={
            "measures": "The measures",
            "correlations": "Spearman's rank correlations over pairs, with intervals over models",
            "differing_most": "Pairs that SAT and another measure rank most differently (1: most alike)",
        },
    ),
    "representations": About(
        "Gradients and features",
        "How alike input gradients and features of models are, and how much of that is noise.",
        files=("representation_pairs.csv",),
    ),
    "reliability": About("Reliability", "How sure the matrix is: by number of images, and between halves of them."),
    "distillation": About(
        "Distillation",
        "Whether students learn more from teachers that are like them.",
        files=("distillation_correlations.csv",),
    ),
}
