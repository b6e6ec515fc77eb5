"""Jobs that share much are neighbours, and the first of each kind stays first."""

from diffusers_flux_ext.jobs.batch.grouping import grouped


def job(model="m", lora=None, net=None, prompt="p", width=64):
    conditions = [{"type": "ControlNetImage", "controlnet": {"path": net}, "image": prompt}] if net else []
    loras = [{"path": lora}] if lora else []
    return {"model": {"path": model}, "loras": loras, "conditions": conditions,
            "call": {"prompt": prompt, "width": width, "seed": 0}}  # fmt: skip


def order(jobs):
    return [[jobs.index(each) for each in group] for group in grouped(jobs, lambda each: each)]


def test_models_make_groups_in_the_order_of_the_list():
    jobs = [job("b"), job("a"), job("b", prompt="q"), job("a", prompt="q")]
    assert order(jobs) == [[0, 2], [1, 3]]


def test_loras_modules_sizes_and_prompts_are_changed_as_rarely_as_possible():
    jobs = [
        job(lora="x", prompt="p"), job(prompt="p"), job(lora="x", prompt="q"), job(net="n", prompt="q"),
        job(lora="x", prompt="p", width=32), job(prompt="q"), job(net="n", prompt="q", width=32),
    ]  # fmt: skip
    assert order(jobs) == [[0, 2, 4, 1, 5, 3, 6]]


def test_conditions_without_modules_do_not_part_jobs():
    region = {"type": "InpaintRegion", "image": "a.png"}
    jobs = [job(), {**job(), "conditions": [region]}, job(lora="x"), job(prompt="q")]
    assert order(jobs) == [[0, 1, 3, 2]]


def test_missing_sections_are_allowed():
    assert order([{}, {"call": None}]) == [[0, 1]]
