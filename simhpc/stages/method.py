"""From the study's [attack] to the attack that is run."""

from __future__ import annotations

from simhpc.attacks import method
from simhpc.errors import StudyError, nearest
from simhpc.study import Attack


def resolve_attack(given: Attack) -> Attack:
    """The settings with the attack's own defaults filled in, after checking all of them. Imports no torch.

    Raises:
        StudyError: there is no such attack, or it does not take these settings.
    """
    try:
        found = method.find(given.name)
    except KeyError:
        known = method.names()
        raise StudyError(
            f"attack.name: there is no attack {given.name!r}{nearest(given.name, known)}; there are {', '.join(known)}"
        ) from None
    except TypeError as error:
        raise StudyError(f"attack.name: {error}") from None
    own = found.own_arguments
    if unknown := sorted(given.args.keys() - own.keys()):
        takes = f"it takes {', '.join(own)}" if own else "it takes none"
        raise StudyError(f"attack.args: {given.name} does not take {', '.join(unknown)}; {takes}")
    if found.norm == "linf" and given.eps_255 > 255:
        raise StudyError(f"attack.eps_255: must be at most 255 for {given.name} (given: {given.eps_255})")
    if not found.takes_steps and given.steps not in (None, found.steps):
        raise StudyError(f"attack.steps: {given.name} makes {found.steps} step(s), not {given.steps}; leave it out")
    if not found.is_random and given.restarts > 1:
        raise StudyError(f"attack.restarts: {given.name} has no random start, so each would find the same")
    return given.model_copy(
        update={
            "steps": found.steps if given.steps is None else given.steps,
            "step_size_eps": found.step_size_eps if given.step_size_eps is None else given.step_size_eps,
            "args": {name: float(given.args.get(name, default)) for name, default in own.items()},
        }
    )


def settings_of(resolved: Attack) -> method.Settings:
    """What `attack_images` takes, of a resolved [attack]."""
    assert resolved.steps is not None
    assert resolved.step_size_eps is not None
    return method.Settings(
        method=method.find(resolved.name),
        eps_255=resolved.eps_255,
        step_size_eps=resolved.step_size_eps,
        steps=resolved.steps,
        arguments=dict(resolved.args),
    )
