"""The subject: a model under study, with its task or its tokenizer.

There is one class for runs, planted models and models of other tools, all converted to our transformer.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.ambient import settled
from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import SubjectError, TaskMismatchError, UnknownNameError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Panel
from algoscope.networks.digit_positions import at_width_of
from algoscope.networks.folding import fold
from algoscope.networks.logits_only import LogitsOnly, Network
from algoscope.networks.shared_prefixes import shared_logits
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.subjects._arguments import MaskLike, TokenIds, mask_of, token_ids
from algoscope.subjects._reading import Reader
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.text import TaskText, Text
from algoscope.tasks.base import Task

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@checked_arguments
class Subject(Reader):
    """A model under study, with its config, its task and its tokenizer. No method changes the model.

    `algoscope.open` opens one by name; every lens takes a name or a subject. Tokens are integers [batch pos], logits
    and activations float tensors; sites have the names of TransformerLens.

    Args:
        name: its name in findings.
        model: the transformer, or a network of which only logits are known; its gradients are switched off.
        task: the task that it was trained on; None for a model of free text.
        origin: the run folder that it came from, where there is one.
        text: its tokenizer; None: the vocabulary of the task. Required without a task.

    Attributes:
        cfg: the model's `ModelConfig`.
        note: a caveat to show with verdicts about it.

    Example:
        >>> import algoscope as ag
        >>> model = ag.open("planted:carry-adder")
        >>> model.generate("123+456"), model.cfg.n_layers
        ('9750<EOS>', 2)
    """

    def __init__(
        self,
        name: str,
        model: Network,
        task: Task | None = None,
        origin: Run | None = None,
        text: Text | None = None,
    ) -> None:
        if task is None and text is None:
            raise SubjectError("a subject needs a task, such as ag.Addition(n_digits=3), or a tokenizer")
        super().__init__(name, model if task is None else _fitted(name, model, task))
        self._task, self.origin = task, origin
        self.text: Text = text or TaskText(self.task)
        self.note = ""
        self._hash: dict[tuple[int, ...], str] = {}  # shared with the copies for measuring

    @property
    def has_task(self) -> bool:
        """Whether it has a task; if not, it reads free text, and no answer is right or wrong."""
        return self._task is not None

    @property
    def task(self) -> Task:
        """The task of the model. Raises TaskMismatchError for a model of free text, which has none."""
        if self._task is None:
            raise TaskMismatchError(
                f"{self.name} reads free text and has no task, so no answer of it is right or wrong: "
                "use a model with a task, such as run:NAME or planted:carry-adder"
            )
        return self._task

    @settled()
    def answer_logits(
        self, tokens: TokenIds, *, attention_mask: MaskLike = None
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Teacher-forced logits at the answer positions of whole sequences.

        A prefix that neighbouring rows share is computed once.

        Args:
            tokens: whole sequences, prompt, right answer and end.
            attention_mask: [batch pos], false or 0 at padding, as for `run`; prefixes are then not shared.
        Raises:
            TaskMismatchError: for a model of free text.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:carry-adder")
            >>> model.answer_logits(model.task.edge_inputs()).shape
            torch.Size([6, 5, 14])
        """
        ids = token_ids(tokens, self.device)
        read = self._ids(ids[:, :-1])
        if (mask := mask_of(attention_mask, ids)) is not None:
            return self.run(read, at=self.task.answer_slice, attention_mask=mask[:, :-1])[0]
        logits = shared_logits(self._network, read, self.task.answer_slice)
        if self.measured:
            self._require_finite_results(read, None, (), logits, {})
        return self._result(logits)

    # ------------------------------------------------------------------ identity

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of the weights; recomputed only after a weight was written to. None for a black box."""
        if self.is_black_box:
            return None
        weights = self.model.state_dict()
        versions = tuple(weight._version for weight in weights.values())
        if versions not in self._hash:
            self._hash.clear()
            self._hash[versions] = weights_hash(weights)
        return self._hash[versions]

    def with_model(self, model: Network, name: str | None = None) -> "Subject":
        """A subject with another model and the same task and tokenizer.

        Example:
            >>> import algoscope as ag, copy
            >>> model = ag.open("planted:induction")
            >>> model.with_model(copy.deepcopy(model.model), "a copy").weights_sha256 == model.weights_sha256
            True
        """
        other = Subject(name or self.name, model, self._task, self.origin, self.text)
        other.measured = self.measured
        return other

    @settled()
    def with_task(self, task: Task | None, tokenizer: Any = None) -> "Subject":
        """The same model, asked another task; then findings about it are not kept in its run folder.

        Args:
            task: the task; None: its own.
            tokenizer: another tokenizer, as `ag.open` takes it; None: the vocabulary of another task.
        Raises:
            TaskMismatchError: for a task that needs more tokens, logits or positions than the model has.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:carry-adder")
            >>> model.with_task(ag.Subtraction(n_digits=3)).generate("12-34")
            '6400<EOS>'
        """
        task = task or self._task
        text = text_of(tokenizer, self._sizes.n_logits) or (self.text if task == self._task else None)
        other = Subject(self.name, self._network, task, self.origin if task == self._task else None, text)
        another = self._task is not None and task != self._task
        other.note = "; ".join(filter(None, (self.note, "evaluated with another task than its own" * another)))
        other.measured = self.measured
        return other

    def for_measuring(self) -> "Subject":
        """The same model, whose results are in float32 where it computes in half precision, so that sums over them are
        accurate; one that is not finite raises DivergedError. Lenses measure it.

        Example:
            >>> import algoscope as ag, torch
            >>> half = ag.open("planted:induction").to_dtype(torch.float16)
            >>> half.for_measuring()(half.to_tokens("abcab")).dtype
            torch.float32
        """
        other = self if self.measured else copy.copy(self)
        other.measured = True
        return other

    @settled()
    def folded(self) -> tuple["Subject", tuple[str, ...]]:
        """A copy with norms folded and weights centred, which predicts the same probabilities, and a list of changes.

        Example:
            >>> import algoscope as ag
            >>> ag.open("planted:carry-adder").folded()[0].name
            'planted:carry-adder (folded)'
        """
        model, changes = fold(self.model)
        return self.with_model(model, f"{self.name} (folded)"), changes

    @settled()
    def to_dtype(self, dtype: torch.dtype) -> "Subject":
        """A copy that computes in another float type.

        Example:
            >>> import algoscope as ag, torch
            >>> ag.open("planted:induction").to_dtype(torch.float64).dtype
            torch.float64
        """
        if dtype not in FLOATS:
            raise SubjectError(f"{dtype} is no type of weights: choose one of {', '.join(map(str, FLOATS))}")
        if not isinstance(self._network, LogitsOnly):
            other = self.with_model(copy.deepcopy(self._network).to(dtype))
        elif self._network.convert is None:
            raise SubjectError(f"{self.name} is a function, which decides itself in which float type it computes")
        else:
            other = self.with_model(self._network.convert(dtype))
        other.note = self.note
        return other

    @settled()
    def before_training(self) -> "Subject | None":
        """The same model at step 0, for a comparison with random weights; None where its run folder has none.

        Example:
            >>> import algoscope as ag
            >>> print(ag.open("planted:induction").before_training())
            None
        """
        if self.origin is None or 0 not in self.origin.steps:
            return None
        return self.with_model(self.origin.model(0, self.device).to(self.dtype), f"{self.name}@0")

    def finding(
        self,
        kind: str,
        claim: str,
        facts: Mapping[str, Any],
        panels: Sequence[Panel] = (),
        *,
        about: str = "",
        tables: Sequence[ResultTable] = (),
        **provenance: Any,
    ) -> Finding:
        """A finding about this subject, with its name and the hash of its weights.

        Args:
            kind: the lens that made it.
            claim: what came out, in a sentence.
            facts: the main numbers by name.
            panels: labelled arrays to draw.
            about: what was measured and how to read it, true of any model.
            tables: the main result as tables.
            provenance: what else it depends on, such as a seed.

        Example:
            >>> import algoscope as ag
            >>> model = ag.open("planted:induction")
            >>> model.finding("size", "it has two layers", {"layers": model.cfg.n_layers})["subject"]
            'planted:induction'
        """
        return Finding(
            kind=kind,
            claim=claim,
            facts={"subject": self.name, **facts},
            panels=tuple(panels),
            provenance={"subject": self.name, "weights_sha256": self.weights_sha256, **provenance},
            about=about,
            tables=tuple(tables),
        )

    # ------------------------------------------------------------------ text

    @checked_arguments
    def lay_out(self, text: str) -> Prompt:
        """The tokens that a lens runs on for a text: with a task, the prompt followed by the model's greedy answer.

        Returns:
            The tokens, their labels, the position that predicts the first answer token, and both answers.
        Raises:
            VocabularyError: for a text that is no input of the task, or that has characters outside the vocabulary.

        Example:
            >>> import algoscope as ag
            >>> prompt = ag.open("planted:carry-adder").lay_out("1+2")
            >>> "".join(prompt.words), prompt.first_answer, prompt.is_right
            ('001+002=3000', 7, True)
        """
        if self._task is None:
            tokens = self.to_tokens(text)
            words, last = tuple(self.to_str_tokens(tokens[0])), tokens.shape[1] - 1
            return Prompt(text, tokens, words, last, answer=None, right=None, got=None, expected=None)
        sequence, n = self._task.sequence(text), self._task.prompt_length
        prompt = torch.tensor([sequence[:n]], device=self.device)
        answer = self.generate_tokens(prompt, len(sequence) - n)
        tokens = torch.cat([prompt, answer], dim=1)[:, :-1]
        return Prompt(
            text=text,
            tokens=tokens,
            words=tuple(self.to_str_tokens(tokens[0])),
            first_answer=n - 1,
            answer=tuple(answer[0].tolist()),
            right=tuple(sequence[n:]),
            got=self.text.decode(self._until_end(answer[0].tolist())),
            expected=self.text.decode(sequence[n:]),
        )


def float_type(name: str | torch.dtype | None) -> torch.dtype | None:
    """A type of weights by name. Raises UnknownNameError for another."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
    key = str(name).removeprefix("torch.")
    if name is not None and key not in known:
        raise UnknownNameError("float type", key, known)
    return known.get(key)


def _fitted(name: str, model: Network, task: Task) -> Network:
    """The model at the width of a task. Raises TaskMismatchError where it has fewer tokens, logits or positions than
    the task needs.
    """
    sizes, answers = model.cfg, task.d_vocab
    if sizes.n_logits < task.d_vocab:
        answers = int(task.edge_inputs()[:, task.prompt_length :].max()) + 1
    for has, needed, what in ((sizes.d_vocab, task.d_vocab, "tokens"), (sizes.n_logits, answers, "logits")):
        if has < needed:
            raise TaskMismatchError(f"{name} has {has} {what}, the task {task.kind} needs {needed}: give another task")
    if not isinstance(model, LogitsOnly):
        return at_width_of(model, task)
    if sizes.n_ctx < task.n_ctx - 1:
        raise TaskMismatchError(f"{name} reads {sizes.n_ctx} tokens, the task {task.kind} needs {task.n_ctx - 1}")
    return model
