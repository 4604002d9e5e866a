from __future__ import annotations

import subprocess
import sys

import pytest

from simhpc.errors import StudyError
from simhpc.stages.method import resolve_attack, settings_of
from simhpc.study import Attack


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "pgd"}, "there is no attack 'pgd'.*there are apgd-ce, fgsm, mi-fgsm, pgd-l2, pgd-linf"),
        ({"name": "pgd-linv"}, "did you mean 'pgd-linf'"),
        ({"eps_255": 256}, "at most 255 for pgd-linf .given: 256"),
        ({"name": "fgsm", "steps": 50}, "fgsm makes 1 step"),
        ({"name": "mi-fgsm", "restarts": 2}, "no random start"),
        ({"args": {"decay": 0.9}}, "pgd-linf does not take decay; it takes none"),
        ({"name": "mi-fgsm", "args": {"mu": 0.9}}, "mi-fgsm does not take mu; it takes decay"),
    ],
)
def test_what_an_attack_does_not_take_is_refused(given, expected):
    with pytest.raises(StudyError, match=expected):
        resolve_attack(Attack(**given))


def test_defaults_are_the_papers_and_what_is_given_stays():
    resolved = resolve_attack(Attack())
    assert (resolved.name, resolved.eps_255, resolved.step_size_eps, resolved.steps) == ("pgd-linf", 8, 0.1, 50)
    assert resolve_attack(resolved) == resolved
    apgd = resolve_attack(Attack(name="apgd-ce", steps=20, restarts=3))
    assert (apgd.step_size_eps, apgd.steps, apgd.restarts, apgd.args) == (2.0, 20, 3, {"rho": 0.75})
    assert resolve_attack(Attack(name="pgd-l2", eps_255=765)).eps_255 == 765
    assert resolve_attack(Attack(name="fgsm")).steps == 1
    settings = settings_of(resolve_attack(Attack(name="mi-fgsm", args={"decay": 0.5})))
    assert (settings.steps, settings.step_size_eps, settings.arguments) == (10, 0.1, {"decay": 0.5})
    assert settings.method.norm == "linf"


def test_checking_an_attack_needs_no_torch():
    code = (
        "import sys; from simhpc.stages.method import resolve_attack; from simhpc.study import Attack;"
        "[resolve_attack(Attack(name=name)) for name in ('apgd-ce', 'fgsm', 'mi-fgsm', 'pgd-l2', 'pgd-linf')];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
