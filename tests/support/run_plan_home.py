"""Home: saved pipelines and plans for them, as run-plan takes both."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from partitioner.models.find_spec import model_spec
from tests.support import pipelines
from tests.support.plans import plan_simply


class Home:
    """A folder with saved pipelines, plans for them and the results of run-plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plans: dict[str, Path] = {}

    def pipeline(self, name: str) -> Path:
        target = self.folder / name
        return target if target.exists() else pipelines.saved(name, self.folder)

    def plan(self, name: str) -> Path:
        if name not in self._plans:
            frames = {} if name.startswith("stable_diffusion") else {"frames": 2}
            spec = model_spec(str(self.pipeline(name)), dtype="float32", height=32, width=32, **frames)
            planning = plan_simply(spec, 2, branches=1, mode="async", warmup=2)
            self._plans[name] = self.folder / f"{name}.plan.json"
            planning.plan.save(self._plans[name])
        return self._plans[name]

    def image(self) -> Path:
        path = self.folder / "start.png"
        if not path.exists():
            Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(path)
        return path
