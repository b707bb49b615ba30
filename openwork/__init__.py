"""Openwork: neural networks with most connections cut away, that still hold.

Importing this page costs nothing: a name is looked up, and torch imported, when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

_PUBLIC = {
    "patterns": ["Block", "FanIn", "Gates", "Groups", "NM", "Unstructured", "pattern"],
    "allocation": [
        "ER",
        "ERK",
        "LAMP",
        "Like",
        "Allocation",
        "Balanced",
        "Deviation",
        "Global",
        "Pyramid",
        "Uniform",
        "UniformPlus",
    ],
    "layer_allocation": ["OWL", "AlphaPruning", "Fluctuation", "Redundancy"],
    "schedules": ["Cosine", "Linear", "OneShot", "Polynomial", "Schedule"],
    "growth": ["CH3L3", "Gradient", "Growth", "Momentum", "Random"],
    "plan": ["Plan", "plan"],
    "memory": ["Memory", "keep_freed_memory", "training_memory"],
    "method": ["Method"],
    "layouts.chain": ["chain_"],
    "layouts.condensed": ["Condensed"],
    "layouts.csr": ["CSR"],
    "layouts.conv": ["SparseConv2d"],
    "layouts.group_int4": ["GroupInt4Linear"],
    "layouts.embedding": ["SparseEmbedding"],
    "layouts.linear": ["SparseLinear"],
    "sparsifier": ["Sparsifier", "attach"],
    "pruner": ["Pruned", "sparsify_"],
    "calibrator": ["Calibration"],
    "pack": ["Decisions", "pack_"],
    "storage": ["to_dense_", "to_sparse_"],
    "files": [
        "FileError",
        "export_dense",
        "inspect",
        "load",
        "load_checkpoint",
        "load_masks",
        "save",
        "save_checkpoint",
    ],
    "calibrate.fp4": ["FP4"],
    "calibrate.gptq": ["GPTQ"],
    "calibrate.gqsa": ["GQSA"],
    "calibrate.lorc": ["LoRC"],
    "calibrate.rtn": ["RTN"],
    "calibrate.spqr": ["SpQR"],
    "calibrate.admm": ["ADMM"],
    "calibrate.alps": ["ALPS"],
    "calibrate.bias_correct": ["BiasCorrect"],
    "calibrate.column_sweep": ["ColumnSweep"],
    "calibrate.dsnot": ["DSnoT"],
    "calibrate.flap": ["FLAP"],
    "calibrate.permute_channels": ["PermuteChannels"],
    "calibrate.refit": ["Refit"],
    "calibrate.refresh_norms": ["RefreshNorms"],
    "calibrate.rescale": ["Rescale"],
    "calibrate.ria": ["RIA"],
    "calibrate.sparsegpt": ["SparseGPT"],
    "calibrate.wanda": ["Wanda"],
    "calibrate.awq": ["AWQ"],
    "calibrate.cbq": ["CBQ"],
    "calibrate.coarse_to_fine": ["CoarseToFine"],
    "calibrate.smoothquant": ["SmoothQuant"],
    "calibrate.straight_through": ["StraightThrough"],
    "calibrator.windows": ["reconstruct_"],
    "calibrator.scales": ["tune_scales_"],
    "calibrate.layer_drop": ["LayerDrop", "drop_blocks_"],
    "calibrator.storage": ["to_quantized_"],
    "layouts.quantized": ["QuantizedLinear"],
    "probes.sensitivity": ["Sensitivity", "sensitivity"],
    "factor.low_rank": ["LowRank", "energy_ranks"],
    "layouts.ordered": ["OrderedConv2d", "OrderedLinear"],
    "regularizer": ["Regularizer", "regularize"],
    "layouts.low_rank": ["CompensatedLinear", "LowRankLinear"],
    "quantization": ["FloatGrid", "IntegerGrid"],
    "train.acdc": ["ACDC"],
    "train.bdwp": ["BDWP"],
    "train.bitwise": ["Bitwise"],
    "train.cht": ["CHT"],
    "train.deep_r": ["DeepR"],
    "train.dnw": ["DNW"],
    "train.dsl_rec": ["DSL"],
    "train.dst_ee": ["DSTEE"],
    "train.gmp": ["GMP"],
    "train.granet": ["GraNet"],
    "train.grow_scs": ["GrowSCS"],
    "train.iss_p": ["ISSP"],
    "train.itop": ["ITOP"],
    "train.gse": ["GSE"],
    "train.keep_zeros": ["KeepZeros"],
    "train.mest": ["MEST"],
    "train.movement": ["Movement"],
    "train.pgf_nm": ["PGF"],
    "train.pst": ["PST"],
    "train.quickselection": ["QuickSelection"],
    "train.rigl": ["RigL"],
    "train.set": ["SET"],
    "train.snfs": ["SNFS"],
    "train.soft_movement": ["SoftMovement"],
    "train.sr_ste": ["SRSTE"],
    "train.srigl": ["SRigL"],
    "train.ssvi": ["SSVI"],
    "train.static_random": ["StaticRandom"],
    "train.str": ["STR"],
    "train.top_kast": ["TopKAST"],
    "train.trp": ["TRP"],
    "probes.average_parameters": ["AverageLaw", "Pretraining", "fit_average_law", "pretraining"],
    "files.delta": ["add_delta_", "save_delta"],
    "merger": ["Merged", "merge_"],
    "merging.dare": ["DARE"],
    "merging.task_arithmetic": ["TaskArithmetic"],
    "merging.ties": ["TIES"],
    "finetune.lora": ["Adapters", "LoRA", "adapt_"],
    "finetune.perp": ["PERP"],
    "finetune.perp_blocks": ["PERPBlocks"],
    "graphs.random": ["barabasi_albert", "watts_strogatz"],
    "probes.graph_properties": ["GraphProperties", "graph_properties"],
    "finetune.adamr": ["AdamR"],
    "finetune.s2ft": ["S2FT"],
    "finetune.sara": ["SaRA"],
    "probes.likeness": ["Match", "curve_distance", "matched"],
    "probes.persistence": ["Persistence", "persistence"],
    "probes.prediction": ["Prediction", "predict_from_graphs"],
    "probes.small_world": ["SmallWorld", "small_world"],
    "probes.topology": ["Wiring", "topology"],
    "probes.undertraining": ["Undertraining", "undertraining"],
    "probes.width_bound": ["Capacity", "er_capacity"],
    "prune.grasp": ["GraSP"],
    "prune.magnitude": ["Magnitude"],
    "prune.random_search": ["RandomSearch"],
    "prune.snip": ["SNIP"],
    "prune.synflow": ["SynFlow"],
    "features": ["Features", "select_features"],
    "tasks.graph_network": ["GraphNetwork", "graph_network", "recurrent_masks"],
    "factor.collapsible": ["Collapsible"],
    "factor.decompose": ["Decompose"],
    "factor.maestro": ["Maestro", "at_ranks"],
    "factor.monarch": ["Monarch"],
    "factor.pixelfly": ["Pixelfly"],
    "factor.rps": ["RPS"],
    "factor.sparse_ift": ["SparseIFT", "wide"],
    "thawing": ["Thawed", "thaw_"],
    "restructuring": ["Restructured", "restructure_"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604  (all of them are strings)

if TYPE_CHECKING:  # the same names, spelled for type checkers and editors
    from openwork.allocation import ER as ER
    from openwork.allocation import ERK as ERK
    from openwork.allocation import LAMP as LAMP
    from openwork.allocation import Allocation as Allocation
    from openwork.allocation import Balanced as Balanced
    from openwork.allocation import Deviation as Deviation
    from openwork.allocation import Global as Global
    from openwork.allocation import Like as Like
    from openwork.allocation import Pyramid as Pyramid
    from openwork.allocation import Uniform as Uniform
    from openwork.allocation import UniformPlus as UniformPlus
    from openwork.calibrate.admm import ADMM as ADMM
    from openwork.calibrate.alps import ALPS as ALPS
    from openwork.calibrate.awq import AWQ as AWQ
    from openwork.calibrate.bias_correct import BiasCorrect as BiasCorrect
    from openwork.calibrate.cbq import CBQ as CBQ
    from openwork.calibrate.coarse_to_fine import CoarseToFine as CoarseToFine
    from openwork.calibrate.column_sweep import ColumnSweep as ColumnSweep
    from openwork.calibrate.dsnot import DSnoT as DSnoT
    from openwork.calibrate.flap import FLAP as FLAP
    from openwork.calibrate.fp4 import FP4 as FP4
    from openwork.calibrate.gptq import GPTQ as GPTQ
    from openwork.calibrate.gqsa import GQSA as GQSA
    from openwork.calibrate.layer_drop import LayerDrop as LayerDrop
    from openwork.calibrate.layer_drop import drop_blocks_ as drop_blocks_
    from openwork.calibrate.lorc import LoRC as LoRC
    from openwork.calibrate.permute_channels import PermuteChannels as PermuteChannels
    from openwork.calibrate.refit import Refit as Refit
    from openwork.calibrate.refresh_norms import RefreshNorms as RefreshNorms
    from openwork.calibrate.rescale import Rescale as Rescale
    from openwork.calibrate.ria import RIA as RIA
    from openwork.calibrate.rtn import RTN as RTN
    from openwork.calibrate.smoothquant import SmoothQuant as SmoothQuant
    from openwork.calibrate.sparsegpt import SparseGPT as SparseGPT
    from openwork.calibrate.spqr import SpQR as SpQR
    from openwork.calibrate.straight_through import StraightThrough as StraightThrough
    from openwork.calibrate.wanda import Wanda as Wanda
    from openwork.calibrator import Calibration as Calibration
    from openwork.calibrator.scales import tune_scales_ as tune_scales_
    from openwork.calibrator.storage import to_quantized_ as to_quantized_
    from openwork.calibrator.windows import reconstruct_ as reconstruct_
    from openwork.factor.collapsible import Collapsible as Collapsible
    from openwork.factor.decompose import Decompose as Decompose
    from openwork.factor.low_rank import LowRank as LowRank
    from openwork.factor.low_rank import energy_ranks as energy_ranks
    from openwork.factor.maestro import Maestro as Maestro
    from openwork.factor.maestro import at_ranks as at_ranks
    from openwork.factor.monarch import Monarch as Monarch
    from openwork.factor.pixelfly import Pixelfly as Pixelfly
    from openwork.factor.rps import RPS as RPS
    from openwork.factor.sparse_ift import SparseIFT as SparseIFT
    from openwork.factor.sparse_ift import wide as wide
    from openwork.features import Features as Features
    from openwork.features import select_features as select_features
    from openwork.files import FileError as FileError
    from openwork.files import export_dense as export_dense
    from openwork.files import inspect as inspect
    from openwork.files import load as load
    from openwork.files import load_checkpoint as load_checkpoint
    from openwork.files import load_masks as load_masks
    from openwork.files import save as save
    from openwork.files import save_checkpoint as save_checkpoint
    from openwork.files.delta import add_delta_ as add_delta_
    from openwork.files.delta import save_delta as save_delta
    from openwork.finetune.adamr import AdamR as AdamR
    from openwork.finetune.lora import Adapters as Adapters
    from openwork.finetune.lora import LoRA as LoRA
    from openwork.finetune.lora import adapt_ as adapt_
    from openwork.finetune.perp import PERP as PERP
    from openwork.finetune.perp_blocks import PERPBlocks as PERPBlocks
    from openwork.finetune.s2ft import S2FT as S2FT
    from openwork.finetune.sara import SaRA as SaRA
    from openwork.graphs.random import barabasi_albert as barabasi_albert
    from openwork.graphs.random import watts_strogatz as watts_strogatz
    from openwork.growth import CH3L3 as CH3L3
    from openwork.growth import Gradient as Gradient
    from openwork.growth import Growth as Growth
    from openwork.growth import Momentum as Momentum
    from openwork.growth import Random as Random
    from openwork.layer_allocation import OWL as OWL
    from openwork.layer_allocation import AlphaPruning as AlphaPruning
    from openwork.layer_allocation import Fluctuation as Fluctuation
    from openwork.layer_allocation import Redundancy as Redundancy
    from openwork.layouts.chain import chain_ as chain_
    from openwork.layouts.condensed import Condensed as Condensed
    from openwork.layouts.conv import SparseConv2d as SparseConv2d
    from openwork.layouts.csr import CSR as CSR
    from openwork.layouts.embedding import SparseEmbedding as SparseEmbedding
    from openwork.layouts.group_int4 import GroupInt4Linear as GroupInt4Linear
    from openwork.layouts.linear import SparseLinear as SparseLinear
    from openwork.layouts.low_rank import CompensatedLinear as CompensatedLinear
    from openwork.layouts.low_rank import LowRankLinear as LowRankLinear
    from openwork.layouts.ordered import OrderedConv2d as OrderedConv2d
    from openwork.layouts.ordered import OrderedLinear as OrderedLinear
    from openwork.layouts.quantized import QuantizedLinear as QuantizedLinear
    from openwork.memory import Memory as Memory
    from openwork.memory import keep_freed_memory as keep_freed_memory
    from openwork.memory import training_memory as training_memory
    from openwork.merger import Merged as Merged
    from openwork.merger import merge_ as merge_
    from openwork.merging.dare import DARE as DARE
    from openwork.merging.task_arithmetic import TaskArithmetic as TaskArithmetic
    from openwork.merging.ties import TIES as TIES
    from openwork.method import Method as Method
    from openwork.pack import Decisions as Decisions
    from openwork.pack import pack_ as pack_
    from openwork.patterns import NM as NM
    from openwork.patterns import Block as Block
    from openwork.patterns import FanIn as FanIn
    from openwork.patterns import Gates as Gates
    from openwork.patterns import Groups as Groups
    from openwork.patterns import Unstructured as Unstructured
    from openwork.patterns import pattern as pattern
    from openwork.plan import Plan as Plan
    from openwork.plan import plan as plan
    from openwork.probes.average_parameters import AverageLaw as AverageLaw
    from openwork.probes.average_parameters import Pretraining as Pretraining
    from openwork.probes.average_parameters import fit_average_law as fit_average_law
    from openwork.probes.average_parameters import pretraining as pretraining
    from openwork.probes.graph_properties import GraphProperties as GraphProperties
    from openwork.probes.graph_properties import graph_properties as graph_properties
    from openwork.probes.likeness import Match as Match
    from openwork.probes.likeness import curve_distance as curve_distance
    from openwork.probes.likeness import matched as matched
    from openwork.probes.persistence import Persistence as Persistence
    from openwork.probes.persistence import persistence as persistence
    from openwork.probes.prediction import Prediction as Prediction
    from openwork.probes.prediction import predict_from_graphs as predict_from_graphs
    from openwork.probes.sensitivity import Sensitivity as Sensitivity
    from openwork.probes.sensitivity import sensitivity as sensitivity
    from openwork.probes.small_world import SmallWorld as SmallWorld
    from openwork.probes.small_world import small_world as small_world
    from openwork.probes.topology import Wiring as Wiring
    from openwork.probes.topology import topology as topology
    from openwork.probes.undertraining import Undertraining as Undertraining
    from openwork.probes.undertraining import undertraining as undertraining
    from openwork.probes.width_bound import Capacity as Capacity
    from openwork.probes.width_bound import er_capacity as er_capacity
    from openwork.prune.grasp import GraSP as GraSP
    from openwork.prune.magnitude import Magnitude as Magnitude
    from openwork.prune.random_search import RandomSearch as RandomSearch
    from openwork.prune.snip import SNIP as SNIP
    from openwork.prune.synflow import SynFlow as SynFlow
    from openwork.pruner import Pruned as Pruned
    from openwork.pruner import sparsify_ as sparsify_
    from openwork.quantization import FloatGrid as FloatGrid
    from openwork.quantization import IntegerGrid as IntegerGrid
    from openwork.regularizer import Regularizer as Regularizer
    from openwork.regularizer import regularize as regularize
    from openwork.restructuring import Restructured as Restructured
    from openwork.restructuring import restructure_ as restructure_
    from openwork.schedules import Cosine as Cosine
    from openwork.schedules import Linear as Linear
    from openwork.schedules import OneShot as OneShot
    from openwork.schedules import Polynomial as Polynomial
    from openwork.schedules import Schedule as Schedule
    from openwork.sparsifier import Sparsifier as Sparsifier
    from openwork.sparsifier import attach as attach
    from openwork.storage import to_dense_ as to_dense_
    from openwork.storage import to_sparse_ as to_sparse_
    from openwork.tasks.graph_network import GraphNetwork as GraphNetwork
    from openwork.tasks.graph_network import graph_network as graph_network
    from openwork.tasks.graph_network import recurrent_masks as recurrent_masks
    from openwork.thawing import Thawed as Thawed
    from openwork.thawing import thaw_ as thaw_
    from openwork.train.acdc import ACDC as ACDC
    from openwork.train.bdwp import BDWP as BDWP
    from openwork.train.bitwise import Bitwise as Bitwise
    from openwork.train.cht import CHT as CHT
    from openwork.train.deep_r import DeepR as DeepR
    from openwork.train.dnw import DNW as DNW
    from openwork.train.dsl_rec import DSL as DSL
    from openwork.train.dst_ee import DSTEE as DSTEE
    from openwork.train.gmp import GMP as GMP
    from openwork.train.granet import GraNet as GraNet
    from openwork.train.grow_scs import GrowSCS as GrowSCS
    from openwork.train.gse import GSE as GSE
    from openwork.train.iss_p import ISSP as ISSP
    from openwork.train.itop import ITOP as ITOP
    from openwork.train.keep_zeros import KeepZeros as KeepZeros
    from openwork.train.mest import MEST as MEST
    from openwork.train.movement import Movement as Movement
    from openwork.train.pgf_nm import PGF as PGF
    from openwork.train.pst import PST as PST
    from openwork.train.quickselection import QuickSelection as QuickSelection
    from openwork.train.rigl import RigL as RigL
    from openwork.train.set import SET as SET
    from openwork.train.snfs import SNFS as SNFS
    from openwork.train.soft_movement import SoftMovement as SoftMovement
    from openwork.train.sr_ste import SRSTE as SRSTE
    from openwork.train.srigl import SRigL as SRigL
    from openwork.train.ssvi import SSVI as SSVI
    from openwork.train.static_random import StaticRandom as StaticRandom
    from openwork.train.str import STR as STR
    from openwork.train.top_kast import TopKAST as TopKAST
    from openwork.train.trp import TRP as TRP

    __version__: str


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'openwork' has no attribute {name!r}", name=name, obj=_this)
    value: object = getattr(import_module(f"openwork.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("openwork")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+uninstalled"


class _VerbsFirst(ModuleType):
    """Keeps ``openwork.plan`` the verb: importing the page of that name would put the page in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


_this = sys.modules[__name__]
_this.__class__ = _VerbsFirst
