"""`sae-binary rules`: finds rules for labels, and associations between latents."""

from tqdm import tqdm

from sae_binary_ext.commands.rules.associations import Associations, associate
from sae_binary_ext.commands.rules.config import TASK, TASKS, Label, RulesConfig
from sae_binary_ext.commands.rules.labelled_text import LabelledText, read_labelled
from sae_binary_ext.commands.rules.rule_scores import score_rule
from sae_binary_ext.commands.rules.rules_page import FoundRules, RuleOfCoder, rules_page
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.reading import OpenedModel
from sae_binary_ext.report.analysis import Analysis, analyse_coders
from sae_binary_ext.saelens.autoencoder import BinaryCoder


def run_rules(coders: list[str], config: RulesConfig) -> Analysis:
    """Find rules and associations; arguments and errors as for analyse_coders.

    Also ValueError if a label's column or task does not exist, if half of the documents have no row
    with a label (or without it), or if a coder reads sequences and a label is a task. ImportError
    if scikit-learn is not installed, or if a label is a task and sae-probes is not installed.
    """
    return analyse_coders(coders, config, _measure, rules_page)


def _measure(opened: OpenedModel, config: RulesConfig) -> FoundRules:
    tasks = _tasks(config)
    in_text = [each for each in config.read_labels() if each.kind not in (TASK, TASKS)]
    associated = config.associations or not config.labels
    rules: list[RuleOfCoder] = []
    associations: list[Associations] = []
    if in_text or associated:
        text = read_labelled(opened, config)
        rules += _rules_in_text(opened, config, text, in_text)
        for each in tqdm(opened.candidates if associated else [], "Associations", unit="coders"):
            associations.append(associate(shown_name(each), text.codes[each.name]))
    if tasks:
        rules += _rules_of_tasks(opened, config, tasks)
    return FoundRules([shown_name(each) for each in opened.candidates], rules, associations)


def _tasks(config: RulesConfig) -> list[str]:
    """Names of the tasks to tell; ValueError if one does not exist."""
    if all(label.kind not in (TASK, TASKS) for label in config.read_labels()):
        return []
    # Import late, because only tasks need sae-probes.
    from sae_binary_ext.commands.rules.rule_tasks import tasks_of

    return tasks_of(config)


def _rules_of_tasks(
    opened: OpenedModel, config: RulesConfig, tasks: list[str]
) -> list[RuleOfCoder]:
    """Rules of each coder for each task."""
    from sae_binary_ext.commands.rules.rule_tasks import score_tasks

    scores = score_tasks(opened, config, tasks)
    return [RuleOfCoder(shown_name(candidate), score) for candidate, score in scores]


def shown_name(candidate: Candidate) -> str:
    """The coder's name. If its codes have values, it says that rules do not read the values."""
    binary = isinstance(candidate.coder, BinaryCoder)
    return candidate.name if binary else f"{candidate.name}, which latents are active"


def _rules_in_text(
    opened: OpenedModel, config: RulesConfig, text: LabelledText, labels: list[Label]
) -> list[RuleOfCoder]:
    """Rules of each coder for labels of tokens and of documents."""
    # Label all rows before any search, so that a wrong label is reported at once.
    labelled = [(label, *text.labelled(label, config)) for label in labels]
    found: list[RuleOfCoder] = []
    limits = int(config.clauses), int(config.literals)
    with tqdm(total=len(labels) * len(opened.candidates), desc="Rules", unit="rules") as progress:
        for candidate in opened.candidates:
            for label, tokens, rows in labelled:
                if tokens is None:
                    codes = text.document_codes[candidate.name]
                else:
                    codes = text.codes[candidate.name].rows(tokens)
                score = score_rule(candidate.name, label.text, codes, rows, limits)
                found.append(RuleOfCoder(shown_name(candidate), score))
                progress.update()
    return found
