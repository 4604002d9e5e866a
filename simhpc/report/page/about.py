"""What the analyses are called and what they are about, in the order of the report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class About:
    """An analysis for people.

    Attributes:
        files: its tables beside NAME.csv.
        names: what keys of its JSON file are called; others as in `NAMES`, or by the key.
        settings: what its settings are called, likewise; those in an inner table by `outer: inner`.
        if_null: what `null` means under keys where it is not a number that is unknown.
        is_optional: there is no section on it unless it was done; others say what makes them.
        has_figure: whether its figure is shown; the report has drawings of its own of the clusters.
    """

    title: str
    explanation: str = ""
    files: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    if_null: dict[str, str] = field(default_factory=dict)
    is_optional: bool = False
    has_figure: bool = True


NAMES = {
    "n_images": "images",
    "n_models": "models",
    "n_pairs": "pairs",
    "n_unknown": "pairs of unknown SAT",
    "mean_sat": "mean SAT",
    "sat_rank": "SAT's rank",
    "rho": "Spearman's ρ",
    "ci_low": "interval from",
    "ci_high": "to",
    "confidence": "level of the intervals",
}
"""What keys of several analyses are called."""

ABOUT = {
    "clusters": About(
        "Clusters",
        "Groups of alike models, by spectral clustering of the matrix; stability says how sure the method is of each.",
        files=("coassignment.csv", "cluster_components.csv"),
        names={
            "k": "clusters",
            "n_clusters": "number of clusters",
            "chosen_by": "number chosen by",
            "p_value": "p, were there no groups at all",
            "k_by_silhouette": "number by the silhouette",
            "k_by_eigengap": "number by the eigengap",
            "choices": "What speaks for each number of clusters",
            "clusters": "Clusters, and the components that set them apart",
            "n_pairs_below_0": "pairs of negative SAT, counted as 0",
        },
        settings={
            "k": "clusters",
            "most": "clusters at most, if chosen",
            "runs": "runs of k-means",
            "starts": "starts of each run",
        },
        if_null={"k": "not given"},
        has_figure=False,
    ),
    "importance": About(
        "Component importance",
        "Which components make two models alike: how much worse a regression predicts SAT when one is shuffled.",
        names={
            "r2_in_sample": "R² in sample",
            "r2_held_out": "R², one or both models held out",
            "r2_both_held_out": "R², both models held out",
            "n_pairs_unknown": "pairs of unknown SAT",
            "ranking": "most important in sample",
        },
    ),
    "ensembles": About(
        "Ensembles",
        "How much better the mean of several models is than each of them, against how alike its members are.",
        names={
            "sizes": "Ensembles of each size",
            "n_ensembles": "ensembles",
            "n_possible": "possible",
            "mean_error_reduction": "error reduction (share)",
            "mean_all_wrong_share": "images that all get wrong (share)",
            "share_better_than_best_member": "better than the best member (share)",
            "trends": "Spearman's rank correlations, and partial ones given the members' mean accuracy",
            "n": "ensembles",
            "partial": "partial ρ",
            "partial_ci_low": "interval from",
            "partial_ci_high": "to",
            "clusters": "Members of different clusters minus members of one (shares)",
            "n_same": "ensembles of one cluster",
            "n_different": "of different ones",
            "same_mean": "mean of one cluster",
            "different_mean": "mean of different ones",
        },
    ),
    "strategies": About(
        "Training strategies",
        "How alike models are that differ in one thing only, by what that thing is; minus architecture: and how much "
        "more alike than models of different architectures.",
        names={
            "groups_are": "groups are",
            "kinds": "By what the models of a pair differ in (SAT)",
            "p_value": "p",
            "p_smallest": "smallest possible p",
            "groups": "Groups of models",
        },
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
    "reliability": About(
        "Reliability",
        "How sure the matrix is: by number of images, between halves of them, and against the study done otherwise.",
        files=("reliability_widths.csv",),
        names={
            "widths": "Width of the confidence intervals by number of images (SAT)",
            "p10": "10th percentile",
            "p90": "90th percentile",
            "split_half": "Correlation over pairs of two halves of the images, and what it predicts of all images",
            "splits_low": "95 % of the splits from",
            "splits_high": "to",
            "whole": "of all images",
            "nearest_is_sure": "models whose nearest is sure",
            "nearest_is_not_sure": "models whose nearest is not sure",
            "against": "Against other runs of these models",
        },
    ),
    "representations": About(
        "Gradients and features",
        "How alike input gradients and features of models are, and how much of that is noise.",
        files=("representation_pairs.csv",),
        is_optional=True,
        names={
            "noise": "Noise of each measure",
            "spread": "standard deviation over pairs",
            "error": "standard error",
            "images_for_95": "images for a reliability of 0.95",
            **{f"q{q:02d}": f"{q} % are below" for q in (5, 25, 50, 75, 95)},
            "single_image_cosines": "cosines of single images, two models",
            "noise_cosines": "cosines of two noisy copies, one model",
            "stored_bytes": "stored (bytes)",
            "elapsed_s": "took (s)",
        },
        settings={
            "stored: n_gradients": "images with gradients",
            "stored: noise_std_255": "noise (standard deviation, levels of 255)",
        },
    ),
    "distillation": About(
        "Distillation",
        "Whether students learn more from teachers that are like them.",
        files=("distillation_correlations.csv",),
        is_optional=True,
        names={
            "distillations": "What was distilled",
            "gains": "What teachers of a kind gave",
            "correlations": "What the distilled accuracy goes with",
        },
        if_null={"given": "nothing"},
    ),
}
