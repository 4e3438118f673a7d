"""The caption below the table of a sweep: what is marked, how values were measured, statistics, units."""

from collections.abc import Iterable, Sequence

from ftlit.errors import shorten
from ftlit.formatting import count
from ftlit.run_folder import BASELINE, TRAIN_IMAGES, TRAINED, keeps_baseline
from ftlit.sweeps.jobs import CROSS_VALIDATED, HELD_OUT, SCORE, SEED, STOPPED, VAL, Job, varying
from ftlit.sweeps.seed_statistics import ESTABLISHED
from ftlit.sweeps.setting_results import RANKINGS, SettingResults

PER_CLASS = "data.per_class"
PROBE_VAL = f"{BASELINE}/{VAL}"
MOST_NAMED = 6  # jobs that have not begun
RESUME = "If this sweep is not running any more, this command runs the other jobs:"
NOTHING_NOTE = "No job of this sweep has finished: there are no results to compare."
MARKED_NOTE = "* marks the best {by}."
PROBE_NOTE = (
    "In {kept} of {all} jobs that train layers, the result, and so the test accuracy, is that of the linear probe before training, because "
    "no epoch was clearly better on val; with callbacks.best=null it is that of the last epoch."
)
NONE_BETTER_NOTE = (
    "No job beat the linear probe before training (val accuracy {found}): no epoch was clearly better on val, so this probe is the "
    "result of {jobs} that trained layers; to test the trained networks, give callbacks.best=null."
)
TEST_NOTE = "Choosing settings by test accuracy would be biased."
CROSSED_NOTE = (
    "Cross-validated: on the training images, each judged by a probe that was not fitted on it; val is not used (data.per_class)."
)
HELD_OUT_NOTE = "Held-out accuracy: on val, and with data.per_class in cross-validation on the training images."
BEST_OF_NOTE = (
    "Best of {number} probes: each job takes the most accurate of its probes (one for each layer, kind and pooling), so that this accuracy "
    "is biased upwards. The test accuracy, of this one probe, is not biased."
)
SAMPLES_NOTE = (
    "Of a setting with one seed they are over the random samples of probe.repeats, and its test accuracy is the mean over these samples."
)
SCORE_NOTE = "The score is the number that the recipe returns, higher is better."
RATE_NOTE = "The score is the learning rate that recipe=lr_find suggests, so a higher one is not better."
STATISTICS_NOTE = "Mean, standard deviation and 95 % interval (Student's t) are over seeds."
TWO_SEEDS_NOTE = (
    "Two seeds say little about their mean: half of their interval is 9 standard deviations, of three seeds 2.5. Give three or more."
)
DIFFERENCE_NOTE = (
    "Difference to the best: test accuracy minus that of the {first}setting with *, with the same seed; its mean over seeds ± half of the "
    "95 % interval."
)
ONE_SEED_NOTE = "A difference over one seed has no interval, so it may be chance: give three seeds or more."
EQUAL_NOTE = (
    "No interval where all seeds give the same value: nothing in these jobs depends on the seed (a linear probe on all training "
    "examples is the same fit)."
)
CHANCE_NOTE = "No interval where all seeds give the same value: they are equal by chance, because other results of these jobs differ."
SAME_NOTE = (
    "All rows are equal: the swept options do not change these results, or the results are equal by chance. train.log of a job says which "
    "options it ignores."
)
RUNG_NOTE = (
    "Rung: where successive halving stopped a job ({stopped} of {all} jobs), which was not tested, and whose seconds are those until then; "
    "the best setting is one of those that reached the last rung."
)
STEPS_NOTE = "The jobs trained {trained:,} of the {all:,} epochs of the full grid ({share:.0%}), {saved:,} fewer."
ESTABLISHED_NOTE = (
    f"{ESTABLISHED} marks an established difference: its 95 % interval does not contain 0. With many settings some are by chance: about "
    "one of 20 settings that do not differ gets this mark."
)
FEWER_NOTE = (
    f"Some classes have fewer images than the largest {PER_CLASS}, so all their images are used: for a learning curve, take the "
    "column `training images`."
)
SECONDS_NOTE = "Job seconds: mean duration of a whole job, from building the network to the test."


def caption_of(jobs: Sequence[Job]) -> str:
    """The caption of the table: whether jobs are missing, and which have not begun; what is marked, statistics, units."""
    return " ".join([*missing_notes(jobs), *_notes(jobs)])


def missing_notes(jobs: Sequence[Job]) -> list[str]:
    """That jobs have not finished, and which have not begun: the sweep may still run. None where all have finished."""
    missing, waiting = finished(jobs), never_begun(jobs)
    notes = [f"Incomplete: {missing}."] if missing else []
    has = "has" if len(waiting) == 1 else "have"
    return [*notes, *([f"{count(len(waiting), 'job')} {has} not begun: {shorten(waiting, MOST_NAMED)}."] if waiting else [])]


def never_begun(jobs: Sequence[Job], planned_words: Sequence[Sequence[str]] | None = None) -> list[str]:
    """The planned jobs that have not begun, `3 (head=mlp seed=1)`: number and swept values.

    Args:
        jobs: that have begun.
        planned_words: the overrides of all jobs; `None`: those of the plan in the folder, which may name none.
    """
    plan, begun = jobs[0].sweep if jobs else None, {job.number for job in jobs}
    known = plan.jobs if plan and planned_words is None else planned_words or ()
    planned = [Job(number, tuple(words)) for number, words in enumerate(known)]
    names = [*varying(planned), SEED]
    values = {job.number: [f"{name}={job.values[name]}" for name in names if name in job.values] for job in planned}
    return [f"{job.number} ({' '.join(values[job.number])})" for job in planned if job.number not in begun]


def finished(jobs: Sequence[Job]) -> str:
    """`2 of 4 jobs have finished`; empty where all have, or have stopped at a rung and do not go on, and where it
    is not known how many the sweep has.
    """
    if not jobs or (plan := jobs[0].sweep) is None:
        return ""
    done = sum(job.status == 0 or (job.status == STOPPED and job.number not in plan.going) for job in jobs)
    return f"{done} of {plan.total} jobs {'has' if done == 1 else 'have'} finished" if done < plan.total else ""


def ignored_options(names: Iterable[str], jobs: Sequence[Job]) -> list[str]:
    """The swept options of which jobs that only fit a linear probe ignore two values or more, so that they have equal results.

    Args:
        names: of the swept options.
        jobs: that have finished.
    """
    return [name for name in names if len({job.values.get(name) for job in jobs if name in job.ignored}) > 1]


def ignored_note(jobs: str, names: Sequence[str]) -> str:
    """The options that jobs ignore which only fit a linear probe, and what follows.

    Args:
        jobs: the jobs, in words, that stand before the verb.
        names: of the options.
    """
    return f"{jobs} ignore {' and '.join(names)}: jobs that differ in {'it' if len(names) == 1 else 'them'} alone have equal results."


def _notes(jobs: Sequence[Job]) -> list[str]:
    results = SettingResults(jobs)
    done = [job for setting in results.settings for job in setting.done]
    if not done:
        return [NOTHING_NOTE]
    by_val = results.by != SCORE
    notes = [MARKED_NOTE.format(by=RANKINGS[VAL if results.by == TRAINED else results.by])] if results.best else []
    notes += {CROSS_VALIDATED: [CROSSED_NOTE], HELD_OUT: [HELD_OUT_NOTE]}.get(results.by, [])
    notes += [BEST_OF_NOTE.format(number=results.probes_tried)] if results.probes_tried else []
    if kept := sum(keeps_baseline(job.metrics) for job in done):
        notes.append(_kept_note(kept, [job for job in done if PROBE_VAL in job.metrics]))
    if names := ignored_options(results.names, done):
        number = sum(any(name in job.ignored for name in names) for job in done)
        notes.append(ignored_note(f"{number} of {len(done)} jobs only fit a linear probe, and", names))
    elif by_val and not kept and _all_equal(results):
        notes.append(SAME_NOTE)
    notes += [FEWER_NOTE] if _has_small_class(done) else []
    notes += [TEST_NOTE if by_val else RATE_NOTE if results.are_range_tests else SCORE_NOTE, STATISTICS_NOTE]
    notes += [SAMPLES_NOTE] if any(setting.spread(results.metric) != setting.of(results.metric) for setting in results.settings) else []
    if any(results.differences):
        notes.append(DIFFERENCE_NOTE.format(first="first " if len(results.best) > 1 else ""))
    notes += [ONE_SEED_NOTE] if any(found and found.seeds == 1 for found in results.differences) else []
    notes += (
        [TWO_SEEDS_NOTE]
        if any(len(set(setting.of(results.metric))) == len(setting.of(results.metric)) == 2 for setting in results.settings)
        else []
    )
    notes += [ESTABLISHED_NOTE] if any(found and found.is_established for found in results.differences) else []
    equal = [setting for setting in results.settings if len(own := setting.of(results.metric)) > 1 and len(set(own)) == 1]
    by_chance = any(job.metrics != setting.done[0].metrics for setting in equal for job in setting.done)
    notes += [CHANCE_NOTE if by_chance else EQUAL_NOTE] if equal else []
    if stopped := sum(job.status == STOPPED for job in jobs):
        notes.append(RUNG_NOTE.format(stopped=stopped, all=len(jobs)))
    if stopped and (plan := jobs[0].sweep) and plan.epochs and not finished(jobs):  # others may train more epochs
        trained, every = sum(job.epochs if job.rung else plan.epochs * (job.status == 0) for job in jobs), plan.total * plan.epochs
        notes.append(STEPS_NOTE.format(trained=trained, all=every, share=trained / every, saved=every - trained))
    return [*notes, SECONDS_NOTE]


def _has_small_class(jobs: Sequence[Job]) -> bool:
    """Whether jobs that differ in their seed and `PER_CLASS` alone have numbers of training images that are not in proportion to it."""
    ratios: dict[tuple[str, ...], set[float]] = {}
    for job in jobs:
        if (wanted := job.values.get(PER_CLASS, "")).isdigit() and (images := job.metrics.get(TRAIN_IMAGES)):
            others = tuple(value for name, value in sorted(job.values.items()) if name not in (SEED, PER_CLASS))
            ratios.setdefault(others, set()).add(images / int(wanted))
    return any(len(found) > 1 for found in ratios.values())


def _kept_note(kept: int, trained: Sequence[Job]) -> str:
    """That the result of some of the jobs that trained layers, or of all, is the linear probe before training."""
    if kept < len(trained):
        return PROBE_NOTE.format(kept=kept, all=len(trained))
    found = sorted({f"{job.metrics[PROBE_VAL]:.4f}" for job in trained})
    number = f"{'all ' if len(trained) > 1 else ''}{count(len(trained), 'job')}"
    return NONE_BETTER_NOTE.format(found=" to ".join(dict.fromkeys((found[0], found[-1]))), jobs=number)


def _all_equal(results: SettingResults) -> bool:
    """Whether several settings have the same numbers, seed by seed."""
    found = [(setting.by_seed(results.by), setting.by_seed(results.metric)) for setting in results.settings]
    return len(found) > 1 and any(found[0][0].values()) and all(one == found[0] for one in found)
