"""Small valid objects of every kind that a public function takes, made anew for each call."""

import json
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsnn.app.settings import Options
from gsnn.app.workflow import run
from gsnn.data.scaling import Scaling
from gsnn.data.tables import Data, load_data
from gsnn.graph import HeteroGraph
from gsnn.graph.container import EDGE_TYPES
from gsnn.io.model import save
from gsnn.kernels.form import Form
from gsnn.models.GSNN import GSNN
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.models.SideBySide import side_by_side
from gsnn.optim.edge_table import KeptEdges
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.layer_captures import LayerCaptures
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.simulate.scenarios import converging_tiers
from gsnn.stats.moments import CoMoments, add_samples
from gsnn.stats.samples import Samples, extended
from gsnn.train.history import History
from gsnn.train.loop import fit

FUNCTIONS = [f"f{k}" for k in range(6)]
SIZES = {"input": 3, "function": 6, "output": 2}
#: A cycle f0 -> f1 -> f2 -> f0, f3 behind it, f4 with a self loop, f5 isolated.
EDGES = {
    EDGE_TYPES[0]: [[0, 1, 2, 2, 4], [1, 2, 0, 3, 4]],
    EDGE_TYPES[1]: [[0, 1, 2, 0], [0, 1, 4, 3]],
    EDGE_TYPES[2]: [[3, 4, 2], [0, 1, 1]],
}


class World:
    """Lazily made objects; the same every time, as all that is drawn comes from seeds of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.numbers = np.random.default_rng(0)

    @cached_property
    def graph(self):
        names = {kind: [f"{kind[0]}{k}" for k in range(n)] for kind, n in SIZES.items()}
        return HeteroGraph({e: torch.tensor(index) for e, index in EDGES.items()}, names, warn=False)

    @cached_property
    def signed_graph(self):
        weights = {e: torch.ones(len(index[0])) for e, index in EDGES.items()}
        weights[EDGE_TYPES[0]][1] = -0.5
        edges, names = self.graph.edge_index_dict, self.graph.node_names_dict
        return HeteroGraph(dict(edges), dict(names), weights, warn=False)

    def new_model(self, seed=0, **options):
        options = {"channels": 3, "layers": 3, "share_layers": False, **options}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GSNN(self.graph.edge_index_dict, self.graph.node_names_dict, **options)
            with torch.no_grad():
                block: Any
                for block in model.ResBlocks:
                    block.lin_in.bias.normal_(std=0.3)
        return model

    @cached_property
    def model(self):
        return self.new_model()

    @cached_property
    def models(self):
        return [self.new_model(seed, norm="groupbatch") for seed in (1, 2)]

    @cached_property
    def pair(self):
        return side_by_side(self.models)

    def tensor(self, *shape, dtype=torch.float32, shift=0.0):
        return torch.tensor(self.numbers.normal(size=shape) + shift, dtype=dtype)

    @cached_property
    def x(self):
        return torch.tensor(np.random.default_rng(1).normal(size=(24, 3)), dtype=torch.float32)

    @cached_property
    def y(self):
        noise = np.random.default_rng(2).normal(size=(24, 2))
        return (self.x[:, :2] - self.x[:, 1:] + 0.3 * torch.tensor(noise)).float()

    @cached_property
    def frames(self):
        rows = pd.Index([f"s{k:02}" for k in range(24)], name="sample")
        return tuple(
            pd.DataFrame(t.double().numpy(), rows, pd.Index(list(self.graph.node_names_dict[kind])))
            for t, kind in ((self.x, "input"), (self.y, "output"))
        )

    @property
    def batches(self):
        return list(zip(self.x.split(9), self.y.split(9), strict=True))

    @cached_property
    def mei(self):
        inferer = MagnitudeEdgeInferer(self.model, self.graph)
        inferer.fit(self.batches, verbose=False)
        return inferer

    @cached_property
    def foi(self):
        inferer = FirstOrderEdgeInferer(self.model, self.graph)
        inferer.fit(self.batches, verbose=False)
        return inferer

    @cached_property
    def kge(self):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return MagnitudeEdgeKGE(self.mei, embedding_dim=4, walks_per_node=2, walk_length=3)

    @cached_property
    def regressor(self):
        regressor = MagnitudeEdgeRegressor(self.model, self.graph)
        for x, y in self.batches:
            self.step(regressor, x, y)
        return regressor

    def step(self, regressor, x, y):
        """One step of the loop that the regressor is made for."""
        regressor.pre_forward()
        loss = torch.nn.functional.mse_loss(self.model(x), y)
        regressor.arm_retained_grads()
        self.model.zero_grad()
        loss.backward()
        return regressor.aux_step()

    @cached_property
    def table(self):
        return self.mei.evaluate()

    @cached_property
    def kept(self):
        return KeptEdges.of(self.graph)

    @cached_property
    def missing(self):
        return [("f0", "f2"), ("f1", "f3")]

    @cached_property
    def captures(self):
        return LayerCaptures(self.model, list(self.graph.node_names_dict["function"]))

    # What kernels take.

    @cached_property
    def plan(self):
        return self.model.plan

    @cached_property
    def state(self):
        state = torch.zeros(self.plan.n_rows, 16)
        state[self.plan.row_of_edge] = self.tensor(self.model.E, 16)
        return state

    @cached_property
    def channels(self):
        return self.tensor(self.plan.n_nodes, 3, 16)

    @property
    def block(self):
        return self.model.ResBlocks[0]

    @cached_property
    def weights(self):
        found = self.block.weights(self.state, self.plan, None)
        return type(found)(*(None if t is None else t.detach() for t in found))

    @cached_property
    def form(self):
        return Form(3, self.block.norm.dims, self.block.norm.centre)

    # What statistics take.

    @cached_property
    def pairs(self):
        """Magnitudes x and y, (P, B, N)."""
        return self.tensor(2, 20, 5, dtype=torch.float64), self.tensor(2, 20, 5, dtype=torch.float64)

    @cached_property
    def moments(self):
        moments = CoMoments.empty(2, 5)
        add_samples(moments, *self.pairs)
        return moments

    @cached_property
    def samples(self):
        # Fewer than features, so that they are kept one by one.
        found = extended(None, *(t[:, :3] for t in self.pairs))
        assert isinstance(found, Samples)
        return found

    @cached_property
    def regularizer(self):
        membership = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]])
        return PathwayLatentRegularizer(self.model, membership)

    # What the main job takes.

    @cached_property
    def files(self):
        x, y = self.frames
        tables = {"x": x, "y": y}
        paths = {name: self.folder / f"{name}.tsv" for name in ("edges", "x", "y", "nodes", "groups")}
        self.graph.to_edge_table().to_csv(paths["edges"], sep="\t", index=False)
        for name, table in tables.items():
            table.to_csv(paths[name], sep="\t")
        rows = [(name, kind) for kind in SIZES for name in self.graph.node_names_dict[kind]]
        pd.DataFrame(rows, columns=["node", "type"]).to_csv(paths["nodes"], sep="\t", index=False)
        groups = pd.DataFrame({"sample": x.index, "group": [f"g{k % 6}" for k in range(24)]})
        groups.to_csv(paths["groups"], sep="\t", index=False)
        return paths

    @cached_property
    def data(self):
        return load_data(self.files["edges"], self.files["x"], self.files["y"], nodes=self.files["nodes"])

    @cached_property
    def small_data(self):
        x, y = self.frames
        return Data(self.graph, x, y, x.index)

    @cached_property
    def options(self):
        return Options(folds=2, channels=2, layers=3, epochs=2, batch_size=12, complete=0, device="cpu")

    @cached_property
    def trained(self):
        model = self.new_model(norm="groupbatch")
        fit(model, *self.frames, epochs=2, standardize=True, seed=0, verbose=False)
        return model

    @cached_property
    def model_file(self):
        path = self.folder / "model.safetensors"
        save(self.trained, path)
        return path

    @cached_property
    def scaling(self):
        return Scaling.of(self.x, self.y)

    @cached_property
    def scenario(self):
        return converging_tiers(width=3)

    @cached_property
    def history(self):
        return History((1.0, 0.5), (1.2, 0.7), (1e-2, 1e-3), 2, False)

    @cached_property
    def run_metrics(self):
        """What metrics.json holds."""
        return json.loads(_metrics())


@cache
def _metrics():
    with tempfile.TemporaryDirectory() as folder:
        world, out = World(Path(folder)), Path(folder) / "run"
        run(world.small_data, out, world.options, verbose=False)
        return (out / "metrics.json").read_text()
