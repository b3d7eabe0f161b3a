"""Common tests of transformers that fail or are skipped, with the reason.

A line names tests by `test_name` for all classes of `test_models.py`, or by `TestClass::test_name`; `*` is allowed.
"""

VERSION = "5.24.0"  # of transformers, whose tests these are

FAILS: dict[str, str] = {
    "TestDCAL::test_attention_outputs": "the backbone's configuration names DCAL's attention function, not eager",
    "TestDCAL::test_can_set_attention_dynamically": "the backbone keeps DCAL's attention function, which calls the "
    "chosen one",
    "test_attention_outputs": "attentions is one tensor, of the one conditional layer, and no tuple of layers",
    "TestASEN::test_can_capture_specific_layers_hidden_states": "a list of layers is for transformers' own backbones: "
    "`output_hidden_states` is True or False here",
    "TestCCAOnMobileNetV2::test_hidden_states_output": "hidden states of convolutions are maps, no rows of tokens",
    "TestCCAOnMobileNetV2::test_model_get_set_embeddings": "transformers' MobileNetV2 has no input embeddings",
    "test_model_get_set_embeddings": "input embeddings are the backbone's embeddings of patches, no `nn.Embedding`",
}

# Skipped on every machine.
SKIPS: dict[str, str] = {
    "TestCCAOnMobileNetV2::test_can_set_attention_dynamically": "the backbone has no attention",
    "test_attn_implementation_composite_models": "is for models of several modalities, and these have images only",
    "test_bc_cache_name_forward": "is for models that generate, with a cache of keys and values",
    "TestCCAOnMobileNetV2::test_can_capture_specific_layers_hidden_states": "transformers' backbone records none",
    "TestCCAOnMobileNetV2::test_capture_outputs_decorator": "transformers' backbone records none",
    "TestCCAOnMobileNetV2::test_can_load_from_already_mapped_keys": "no weight was ever renamed",
    "test_can_set_attention_dynamically_composite_model": "is for models of several modalities",
    "test_causal_lm_loss_honors_shift_labels": "is for language models",
    "test_eager_matches_batched_and_grouped_inference*": "is for mixtures of experts",
    "test_enable_input_require_grads_with_gradient_checkpointing": "is for embeddings of words",
    "test_encoder_decoder_loss_no_double_shift": "is for language models",
    "test_inputs_embeds": "there are no words, so there are no embeddings of words",
    "test_keep_in_fp32_modules*": "no module has to stay in float32: what needs it casts its inputs",
    "test_model_rope_*": "there are no rotary positions",
    "test_moe_models_record_router_logits": "is for mixtures of experts",
    "test_output_router_logits_from_config": "is for mixtures of experts",
    "test_resize_embeddings_untied": "there are no words, so there are no embeddings of words",
    "test_resize_embeddings_untied_no_reinit_on_post_init": "there are no words",
    "test_resize_position_vector_embeddings": "the backbone has the positions, and interpolates them",
    "test_resize_tokens_embeddings": "there are no words, so there are no embeddings of words",
    "TestCCAOnMobileNetV2::test_reverse_loading_mapping": "no weight was ever renamed",
    "test_sdpa_can_dispatch_composite_models": "is for models of several modalities",
    "test_sliding_window_mask": "there is no sliding window",
    "test_tp_plan_matches_params": "there is no plan for tensor parallelism: the models are small",
    "test_vision_axial_rope": "there are no rotary positions",
}

# Skipped on machines without the hardware or the package.
SKIPS_WITHOUT: dict[str, str] = {
    "test_*_with_deepspeed*": "needs DeepSpeed",
    "test_can_load_with_device_context_manager": "needs an accelerator",
    "test_can_load_with_global_device_set": "needs an accelerator",
    "test_cpu_offload": "needs an accelerator; tests/models/test_hooks.py tests offloading on a CPU",
    "test_disk_offload_*": "needs an accelerator; tests/models/test_hooks.py tests offloading on a CPU",
    "test_flash_attn_*": "needs Flash Attention",
    "test_flex_attention_with_grads": "needs an accelerator",
    "test_kernels_can_load_without_crashing": "needs an accelerator and the package kernels",
    "test_model_parallelism": "needs several accelerators",
    "test_sdpa_can_compile_dynamic": "needs an accelerator",
    "test_sdpa_can_dispatch_on_flash": "needs an accelerator",
    "test_torch_compile_for_training": "runs only with RUN_SLOW=1",
}
