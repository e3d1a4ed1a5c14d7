"""Trainer and PEFT over the model, as a training program would use them."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from catalens.model import Phi3VForCausalLM, loss, unused_parameter_names

# PEFT and Trainer still call transformers by names that it has begun to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
TEXT_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def labelled(batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels.masked_fill(labels == 3, -100)}


@pytest.fixture
def rows(processor, pictures):
    colours = ["red", "blue", "green", "black"]
    return [("<|image_1|>What?" + c, [p]) for c, p in zip(colours, pictures, strict=True)]


@pytest.fixture
def collate(processor):
    def together(rows):
        texts, images = zip(*rows, strict=True)
        return labelled(processor(text=list(texts), images=list(images), num_crops=1, padding=True))

    return together


def arguments(folder, **changes):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "remove_unused_columns": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
            "max_grad_norm": 0.0,
            "optim": "sgd",
            "seed": 0,
            **changes,
        }
    )


def test_trainer_learns_and_accumulation_changes_nothing(make_model, rows, collate, tmp_path):
    """Rows differ in their number of labels, so only a division by all labels of a step gives the same."""
    trained = []
    for size, steps in ((4, 1), (1, 4)):
        model = make_model()
        before = model(**collate(rows)).loss.item()
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        Trainer(model, arguments(tmp_path, **changes), train_dataset=rows, data_collator=collate).train()
        with torch.no_grad():
            assert model.eval()(**collate(rows)).loss.item() < before
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_trainer_evaluates_without_logits(model, rows, collate, tmp_path):
    trainer = Trainer(model, arguments(tmp_path), eval_dataset=rows, data_collator=collate)
    assert trainer.evaluate()["eval_loss"] > 0


def test_lora_trains_reloads_and_merges(make_model, batch, tmp_path):
    base, inputs = make_model(), labelled(batch)
    with torch.no_grad():
        start = base(**batch).logits
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=TEXT_TARGETS, task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(4):
        loss = tuned(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    tuned.eval()
    with torch.no_grad():
        wanted = tuned(**batch).logits
        assert (wanted - start).abs().max() > 1e-3
        torch.testing.assert_close(again(**batch).logits, wanted)
        written = again.generate(**batch, max_new_tokens=3, do_sample=False)
        merged = again.merge_and_unload()
        assert type(merged) is Phi3VForCausalLM
        torch.testing.assert_close(merged(**batch).logits, wanted, atol=2e-5, rtol=1e-4)
    assert written.shape[1] == batch["input_ids"].shape[1] + 3


def test_a_head_that_trains_in_full_beside_adapters_is_fused_too(make_model, batch, monkeypatch):
    wanted = make_model()(**labelled(batch)).loss
    calls, original = [], loss.linear_cross_entropy
    monkeypatch.setattr(loss, "linear_cross_entropy", lambda *args: calls.append(args) or original(*args))
    for saved, fused in ((["lm_head"], 1), (None, 0)):
        targets = TEXT_TARGETS if saved else ["lm_head"]
        tuned = get_peft_model(make_model(), LoraConfig(r=2, target_modules=targets, modules_to_save=saved))
        calls.clear()
        given = tuned(**labelled(batch)).loss
        assert len(calls) == fused  # an adapter on the head itself has scores of its own
        torch.testing.assert_close(given, wanted)


def test_lora_everywhere_with_checkpointing_and_a_frozen_base(make_model, batch):
    model = make_model()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]))
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
    tuned.train()(**labelled(batch)).loss.backward()
    unused = set(unused_parameter_names(tuned))
    assert any("lora_" in name for name in unused)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad is None) == (name in unused), name
