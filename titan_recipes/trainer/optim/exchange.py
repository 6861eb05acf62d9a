"""Whole matrices out of shards and back: each matrix is gathered on one rank only.

The ranks that share matrices deal them out so that all have about the same to multiply. One
all-to-all takes every shard to the rank that has its matrix, one brings the results back: a rank
sends and receives what it holds, once each way, and no product is computed twice. Gathering every
matrix on every rank would receive as much as FSDP does for a forward, and multiply the work by the
number of ranks. A matrix that lies on one rank already, as of experts sharded by expert, stays.

Copies of the model (HSDP), and ranks of an axis that holds the same, each do their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

Transform = Callable[[list[Tensor]], list[Tensor]]
"""Matrices to matrices of the same shapes."""


@dataclass(frozen=True, slots=True)
class Block:
    """The part of a stack of matrices [N, R, C] that a rank holds."""

    offset: tuple[int, int, int]
    shape: tuple[int, int, int]

    def piece(self, matrix: int) -> tuple[slice, slice] | None:
        """Where in a matrix of the stack this rank's part of it is; None = it has none."""
        if not self.offset[0] <= matrix < self.offset[0] + self.shape[0]:
            return None
        if not self.shape[1] * self.shape[2]:
            return None
        rows, columns = (
            slice(begin, begin + size)
            for begin, size in zip(self.offset[1:], self.shape[1:], strict=True)
        )
        return rows, columns


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix. index: of its parameter; number: its place in that parameter's stack."""

    index: int
    number: int
    shape: tuple[int, int]

    @property
    def cost(self) -> int:
        """In proportion to the multiplications of X X^T."""
        return min(self.shape) ** 2 * max(self.shape)


def shared_axes(parameter: DTensor) -> tuple[int, ...]:
    """The axes of a parameter's mesh that it is split over."""
    return tuple(axis for axis, p in enumerate(parameter.placements) if not p.is_replicate())


def joined_group(mesh: DeviceMesh, axes: tuple[int, ...]) -> dist.ProcessGroup:
    """The ranks of several axes of a mesh; collective where they are more than one axis."""
    if len(axes) == 1:
        return mesh.get_group(axes[0])
    assert mesh.mesh_dim_names is not None
    names = tuple(mesh.mesh_dim_names[axis] for axis in axes)
    return (mesh if len(axes) == mesh.ndim else mesh[names])._flatten().get_group()


class MatrixExchange:
    """Matrices that the same ranks share."""

    def __init__(
        self, parameters: list[DTensor], group: dist.ProcessGroup, axes: tuple[int, ...]
    ) -> None:
        """axes: of the parameters' mesh, over which they are split; group: its ranks."""
        self.group, self.rank = group, group.rank()
        self.shapes = [_stacked(parameter.shape) for parameter in parameters]
        self.blocks = [_blocks(parameter, axes) for parameter in parameters]
        matrices = [
            Matrix(index, number, (rows, columns))
            for index, (count, rows, columns) in enumerate(self.shapes)
            for number in range(count)
        ]
        self.held: list[list[Matrix]] = [[] for _ in range(group.size())]
        load, self.has_shared = [0] * group.size(), False
        for matrix in sorted(matrices, key=lambda m: (-m.cost, m.index, m.number)):
            rank = self._whole_on(matrix)
            if rank is None:
                rank, self.has_shared = load.index(min(load)), True
            load[rank] += matrix.cost
            self.held[rank].append(matrix)

    def _whole_on(self, matrix: Matrix) -> int | None:
        """The rank that holds all of a matrix; None where it is shared."""
        whole = tuple(slice(0, size) for size in matrix.shape)
        for rank, block in enumerate(self.blocks[matrix.index]):
            if block.piece(matrix.number) == whole:
                return rank
        return None

    def apply(self, transform: Transform, shards: list[Tensor]) -> list[Tensor]:
        """This rank's shards of the transformed matrices, from those of the matrices."""
        own = [shard.reshape(self.blocks[i][self.rank].shape) for i, shard in enumerate(shards)]
        sent = [self._pieces(own, self.rank, rank) for rank in range(self.group.size())]
        sizes = [[self._size(m, sender) for m in self.held[self.rank]] for sender in self._ranks]
        received = self._exchange(sent, [sum(of_sender) for of_sender in sizes], own)
        # Once over: a rank's matrices from everyone's pieces, and their pieces from its matrices.
        matrices = [own[0].new_empty(matrix.shape) for matrix in self.held[self.rank]]
        places = [
            (sender, slot, where)
            for sender in self._ranks
            for slot, matrix in enumerate(self.held[self.rank])
            if (where := self.blocks[matrix.index][sender].piece(matrix.number)) is not None
        ]
        begin = 0
        for _, slot, where in places:
            target = matrices[slot][where]
            target.copy_(received[begin : begin + target.numel()].view_as(target))
            begin += target.numel()
        matrices = transform(matrices)
        back = [
            [matrices[slot][where] for sender, slot, where in places if sender == rank]
            for rank in self._ranks
        ]
        lengths = [sum(piece.numel() for piece in pieces) for pieces in sent]
        returned = self._exchange(back, lengths, own)
        begin, done = 0, [torch.empty_like(stack) for stack in own]
        for pieces in (self._pieces(done, self.rank, rank) for rank in self._ranks):
            for piece in pieces:
                piece.copy_(returned[begin : begin + piece.numel()].view_as(piece))
                begin += piece.numel()
        return [stack.view(shard.shape) for stack, shard in zip(done, shards, strict=True)]

    @property
    def _ranks(self) -> range:
        return range(self.group.size())

    def _pieces(self, own: list[Tensor], rank: int, holder: int) -> list[Tensor]:
        """Views of a rank's own shards that belong to the matrices that `holder` gathers."""
        return [
            own[m.index][m.number - self.blocks[m.index][rank].offset[0]]
            for m in self.held[holder]
            if self.blocks[m.index][rank].piece(m.number) is not None
        ]

    def _size(self, matrix: Matrix, rank: int) -> int:
        block = self.blocks[matrix.index][rank]
        return 0 if block.piece(matrix.number) is None else block.shape[1] * block.shape[2]

    def _exchange(
        self, pieces: list[list[Tensor]], lengths: list[int], like: list[Tensor]
    ) -> Tensor:
        """Send each rank its pieces; what came from all, in order of rank, as one vector."""
        flat = [piece.reshape(-1) for of_rank in pieces for piece in of_rank]
        sent = torch.cat(flat) if flat else like[0].new_empty(0)
        if not self.has_shared:
            return sent
        received = sent.new_empty(sum(lengths))
        sizes = [sum(piece.numel() for piece in of_rank) for of_rank in pieces]
        dist.all_to_all_single(received, sent, lengths, sizes, group=self.group)
        return received


def _stacked(shape: torch.Size) -> tuple[int, int, int]:
    *stack, rows, columns = shape
    return math.prod(stack), rows, columns


def _blocks(parameter: DTensor, axes: tuple[int, ...]) -> list[Block]:
    """What each rank of the axes holds, in the order of their group."""
    mesh = parameter.device_mesh
    own = mesh.get_coordinate()
    assert own is not None
    blocks: list[Block] = []
    for place in product(*(range(mesh.size(axis)) for axis in axes)):
        coordinate = list(own)
        for axis, index in zip(axes, place, strict=True):
            coordinate[axis] = index
        shape, offset = _compute_local_shape_and_global_offset(
            parameter.shape, mesh.shape, coordinate, parameter.placements
        )
        missing = 3 - len(shape)
        offset, shape = (0,) * missing + tuple(offset), (1,) * missing + tuple(shape)
        blocks.append(Block(offset, shape))  # pyright: ignore[reportArgumentType]
    return blocks
