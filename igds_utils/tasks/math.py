"""Math: arithmetic word problems made on the spot; accuracy by math-verify."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Literal

from pydantic import Field, field_validator

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import AccuracyMetric, Strict
from igds_utils.config.settings import TaskConfig
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import (
    SETS,
    Example,
    data_parameters,
    held_out_texts,
    number,
    random_stream,
    split,
    unique,
)
from igds_utils.tasks.word_problems import draw_problem, draw_request, stories

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{{}}"

# The four worked examples of Lewkowycz et al. (2022, Minerva), taken from MATH; the answer is boxed in the solution.
MINERVA_SHOTS = (
    {
        "question": r"Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.",
        "solution": (
            r"The expressions inside each square root must be non-negative. Therefore, $x-2 \ge 0$, so $x\ge2$, and "
            r"$5 - x \ge 0$, so $x \le 5$. Also, the denominator cannot be equal to zero, so $5-x>0$, which gives "
            r"$x<5$. Therefore, the domain of the expression is $\boxed{[2,5)}$."
        ),
    },
    {
        "question": (
            r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find $\det (\mathbf{A} \mathbf{B}).$"
        ),
        "solution": (
            r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = (2)(12) = "
            r"\boxed{24}.$"
        ),
    },
    {
        "question": (
            "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, how many "
            "times must Terrell lift them in order to lift the same total weight?"
        ),
        "solution": (
            r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\cdot 12\cdot20=480$ pounds of "
            r"weight.  If he lifts two 15-pound weights instead for $n$ times, he will lift a total of "
            r"$2\cdot15\cdot n=30n$ pounds of weight.  Equating this to 480 pounds, we can solve for $n$:"
            "\n\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}"
        ),
    },
    {
        "question": (
            "If the system of equations\n\n\\begin{align*}\n6x-4y&=a,\\\\\n6y-9x &=b.\n\\end{align*}has a solution "
            "$(x, y)$ where $x$ and $y$ are both nonzero,\nfind $\\frac{a}{b},$ assuming $b$ is nonzero."
        ),
        "solution": (
            "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n$$6y-9x=-\\frac{3}{2}a.$$Since we "
            "also know that $6y-9x=b$, we have\n\n"
            "$$-\\frac{3}{2}a=b\\Rightarrow\\frac{a}{b}=\\boxed{-\\frac{2}{3}}.$$"
        ),
    },
)


class MathData(Strict):
    """The `data` section of the math task."""

    steps: dict[Literal[1, 2, 3], float] = Field(
        {1: 0.5, 2: 0.4, 3: 0.1}, description="weight of each difficulty"
    )
    max_number: int = Field(
        20, ge=5, description="largest number given in a question; results stay below 100"
    )
    families: list[str] | None = Field(
        None,
        description="families of stories (word_problems.yaml) that problems are drawn from; all where left out",
    )
    off_task: float = Field(0.25, ge=0, lt=1, description="share of the pool that asks for no calculation")

    @field_validator("families")
    @classmethod
    def _known_families(cls, families: list[str] | None) -> list[str] | None:
        known = stories()["problems"]
        if unknown := sorted(set(families or known) - set(known)):
            raise ValueError(f"no family {unknown[0]!r} of word problems; known: {', '.join(known)}")
        return families

    @field_validator("steps")
    @classmethod
    def _some_weight(cls, steps: dict[int, float]) -> dict[int, float]:
        if min(steps.values(), default=0) < 0 or sum(steps.values()) <= 0:
            raise ValueError(f"weights must not be negative and not all zero: {steps}")
        return steps


class MathTask(Task):
    name = "math"
    title = "Math"
    scoring = AccuracyMetric()
    identification_template = "{question}\n" + INSTRUCTION + ".\nSolution:"
    records_instruction = "{question}\n" + INSTRUCTION + "."
    records_input = ""
    records_output = "Solution: {target}"
    target_template = "{solution}\nThe final answer is \\boxed{{{answer}}}."
    reference = "answer"
    few_shot_template = (
        INSTRUCTION + " as the following format.\nHere are some examples:{shots}"
        "\n### Problem:\n{question}\n### Solution:"
    )
    shot_template = "\n### Problem:\n{question}\n### Solution:\n{solution}"
    shots = MINERVA_SHOTS
    stops = ("### Problem",)

    def own_data(self, config: TaskConfig) -> str:
        return "generated word problems"

    def own_sets(self, config: TaskConfig, seed: int) -> dict[str, list[Example]]:
        data, sizes = data_parameters(MathData, config, self.name), config.sizes
        if sizes.pool is None:
            raise ConfigError("generated problems have no end: give tasks.math.sizes.pool a number")
        random = random_stream(self.name, "sets", seed)
        off_task = round(data.off_task * sizes.pool)
        total = sum(getattr(sizes, name) for name in SETS)
        problems = islice(unique(_problems(random, data)), total - off_task)
        requests = islice(unique(_requests(random)), off_task)
        examples = [*problems, *requests]
        pool_start = total - sizes.pool  # the pool is dealt last, so the requests, mixed in, all fall into it
        pool = examples[pool_start:]
        random.shuffle(pool)
        return split(examples[:pool_start] + pool, sizes, self.name)

    def own_extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        data = data_parameters(MathData, config, self.name)
        random = random_stream(self.name, "extra", seed)
        off_task = round(data.off_task * n)
        seen = held_out_texts(self.own_sets(config, seed))
        examples = [
            *islice(unique(_problems(random, data), seen), n - off_task),
            *islice(unique(_requests(random), seen), off_task),
        ]
        random.shuffle(examples)
        return number(examples, self.name, "extra")


def _problems(random: Random, data: MathData) -> Iterator[Example]:
    levels, weights = list(data.steps), list(data.steps.values())
    while True:
        problem = draw_problem(random, random.choices(levels, weights)[0], data.max_number, data.families)
        yield Example(
            id="",
            fields={"question": problem.question},
            target=f"{problem.solution}\nThe final answer is \\boxed{{{problem.answer}}}.",
            references=(problem.answer,),
            meta={"family": problem.family, "steps": problem.steps, "off_task": 0},
        )


def _requests(random: Random) -> Iterator[Example]:
    while True:
        question, reply, family = draw_request(random)
        meta = {"family": family, "steps": 0, "off_task": 1}
        yield Example(id="", fields={"question": question}, target=reply, references=(), meta=meta)
