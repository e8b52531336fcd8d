"""Rewrites of functions of diffusers whose sizes or branches depend on the values of tensors: masks of text, mostly.

See graph.rewrites. In each pair stand the lines of diffusers 0.42, and those that compute the same.
"""

from __future__ import annotations

_MODULE = "diffusers.models.transformers.transformer"

# function -> pairs of lines
DIFFUSERS_REWRITES: dict[str, tuple[tuple[str, str], ...]] = {
    # A mask as an index.
    f"{_MODULE}_glm_image:GlmImageTransformer2DModel.forward": (
        (
            """\
        prior_embedding[prior_token_drop] *= 0.0""",
            """\
        dropped = prior_token_drop[(...,) + (None,) * (prior_embedding.dim() - prior_token_drop.dim())]
        prior_embedding = torch.where(dropped, prior_embedding * 0.0, prior_embedding)""",
        ),
    ),
    # A branch on the largest position; a buffer that is written anew before it is read.
    f"{_MODULE}_omnigen:OmniGenSuScaledRotaryEmbedding.forward": (
        (
            """\
        if seq_len > self.original_max_position_embeddings:
            ext_factors = torch.tensor(self.long_factor, dtype=torch.float32, device=hidden_states.device)
        else:
            ext_factors = torch.tensor(self.short_factor, dtype=torch.float32, device=hidden_states.device)""",
            """\
        factors = torch.tensor([self.short_factor, self.long_factor], dtype=torch.float32, device=hidden_states.device)
        ext_factors = torch.where(seq_len > self.original_max_position_embeddings, factors[1], factors[0])""",
        ),
        (
            """\
        self.inv_freq = 1.0 / (ext_factors * self.base**inv_freq_shape)""",
            """\
        inv_freq = 1.0 / (ext_factors * self.base**inv_freq_shape)""",
        ),
        (
            """\
        inv_freq_expanded = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)""",
            """\
        inv_freq_expanded = inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)""",
        ),
    ),
    # Texts are joined, what is masked out of each last.
    f"{_MODULE}_hunyuanimage:HunyuanImageTransformer2DModel.forward": (
        (
            """\
        new_encoder_hidden_states = []
        new_encoder_attention_mask = []

        for text, text_mask, text_2, text_mask_2 in zip(
            encoder_hidden_states, encoder_attention_mask, encoder_hidden_states_2, encoder_attention_mask_2
        ):
            # Concatenate: [valid_mllm, valid_byt5, invalid_mllm, invalid_byt5]
            new_encoder_hidden_states.append(
                torch.cat(
                    [
                        text_2[text_mask_2],  # valid byt5
                        text[text_mask],  # valid mllm
                        text_2[~text_mask_2],  # invalid byt5
                        text[~text_mask],  # invalid mllm
                    ],
                    dim=0,
                )
            )

            # Apply same reordering to attention masks
            new_encoder_attention_mask.append(
                torch.cat(
                    [
                        text_mask_2[text_mask_2],
                        text_mask[text_mask],
                        text_mask_2[~text_mask_2],
                        text_mask[~text_mask],
                    ],
                    dim=0,
                )
            )

        encoder_hidden_states = torch.stack(new_encoder_hidden_states)
        encoder_attention_mask = torch.stack(new_encoder_attention_mask)""",
            """\
        states = torch.cat([encoder_hidden_states_2, encoder_hidden_states], dim=1)
        mask = torch.cat([encoder_attention_mask_2, encoder_attention_mask], dim=1)
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        encoder_hidden_states = torch.gather(states, 1, order[:, :, None].expand(-1, -1, states.shape[2]))
        encoder_attention_mask = torch.gather(mask, 1, order)""",
        ),
    ),
    # The same, with what is masked out set to zero; and a branch on whether there is an image.
    f"{_MODULE}_hunyuan_video15:HunyuanVideo15Transformer3DModel.forward": (
        (
            """\
        if is_t2v:
            encoder_hidden_states_3 = encoder_hidden_states_3 * 0.0
            encoder_attention_mask_3 = torch.zeros(
                (batch_size, encoder_hidden_states_3.shape[1]),
                dtype=encoder_attention_mask.dtype,
                device=encoder_attention_mask.device,
            )
        else:
            encoder_attention_mask_3 = torch.ones(
                (batch_size, encoder_hidden_states_3.shape[1]),
                dtype=encoder_attention_mask.dtype,
                device=encoder_attention_mask.device,
            )""",
            """\
        encoder_hidden_states_3 = torch.where(is_t2v, encoder_hidden_states_3 * 0.0, encoder_hidden_states_3)
        encoder_attention_mask_3 = (
            (~is_t2v).to(encoder_attention_mask.dtype).expand(batch_size, encoder_hidden_states_3.shape[1])
        )""",
        ),
        (
            """\
        new_encoder_hidden_states = []
        new_encoder_attention_mask = []

        for text, text_mask, text_2, text_mask_2, image, image_mask in zip(
            encoder_hidden_states,
            encoder_attention_mask,
            encoder_hidden_states_2,
            encoder_attention_mask_2,
            encoder_hidden_states_3,
            encoder_attention_mask_3,
        ):
            # Concatenate: [valid_image, valid_byt5, valid_mllm, invalid_image, invalid_byt5, invalid_mllm]
            new_encoder_hidden_states.append(
                torch.cat(
                    [
                        image[image_mask],  # valid image
                        text_2[text_mask_2],  # valid byt5
                        text[text_mask],  # valid mllm
                        image[~image_mask],  # invalid image
                        torch.zeros_like(text_2[~text_mask_2]),  # invalid byt5 (zeroed)
                        torch.zeros_like(text[~text_mask]),  # invalid mllm (zeroed)
                    ],
                    dim=0,
                )
            )

            # Apply same reordering to attention masks
            new_encoder_attention_mask.append(
                torch.cat(
                    [
                        image_mask[image_mask],
                        text_mask_2[text_mask_2],
                        text_mask[text_mask],
                        image_mask[~image_mask],
                        text_mask_2[~text_mask_2],
                        text_mask[~text_mask],
                    ],
                    dim=0,
                )
            )

        encoder_hidden_states = torch.stack(new_encoder_hidden_states)
        encoder_attention_mask = torch.stack(new_encoder_attention_mask)""",
            """\
        states = torch.cat([encoder_hidden_states_3, encoder_hidden_states_2, encoder_hidden_states], dim=1)
        mask = torch.cat([encoder_attention_mask_3, encoder_attention_mask_2, encoder_attention_mask], dim=1)
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        text = torch.arange(states.shape[1], device=states.device) >= encoder_hidden_states_3.shape[1]
        states = torch.where((text & ~mask)[:, :, None], torch.zeros_like(states), states)
        encoder_hidden_states = torch.gather(states, 1, order[:, :, None].expand(-1, -1, states.shape[2]))
        encoder_attention_mask = torch.gather(mask, 1, order)""",
        ),
    ),
    # What torchvision's resize does of a tensor; it is no requirement of diffusers'.
    f"{_MODULE}_cosmos:CosmosTransformer3DModel.forward": (
        (
            """\
            padding_mask_resized = transforms.functional.resize(
                padding_mask, list(hidden_states.shape[-2:]), interpolation=transforms.InterpolationMode.NEAREST
            )""",
            """\
            padding_mask_resized = nn.functional.interpolate(padding_mask, hidden_states.shape[-2:], mode="nearest")""",
        ),
    ),
    # Each expert is given all tokens, not only its own: so many experts cost so many times more. Last bits may differ.
    f"{_MODULE}_hidream_image:MOEFeedForwardSwiGLU.moe_infer": (
        (
            """\
        idxs = flat_expert_indices.argsort()
        tokens_per_expert = flat_expert_indices.bincount().cpu().numpy().cumsum(0)
        token_idxs = idxs // self.num_activated_experts
        for i, end_idx in enumerate(tokens_per_expert):
            start_idx = 0 if i == 0 else tokens_per_expert[i - 1]
            if start_idx == end_idx:
                continue
            expert = self.experts[i]
            exp_token_idx = token_idxs[start_idx:end_idx]
            expert_tokens = x[exp_token_idx]
            expert_out = expert(expert_tokens)
            expert_out.mul_(flat_expert_weights[idxs[start_idx:end_idx]])

            # for fp16 and other dtype
            expert_cache = expert_cache.to(expert_out.dtype)
            expert_cache.scatter_reduce_(0, exp_token_idx.view(-1, 1).repeat(1, x.shape[-1]), expert_out, reduce="sum")""",  # noqa: E501
            """\
        chosen = flat_expert_indices.view(-1, self.num_activated_experts)
        weights = flat_expert_weights.view(-1, self.num_activated_experts)
        for i, expert in enumerate(self.experts):
            expert_out = expert(x)
            expert_out.mul_((weights * (chosen == i)).sum(dim=1, keepdim=True))
            own = (chosen == i).any(dim=1, keepdim=True)
            expert_cache = expert_cache + torch.where(own, expert_out, torch.zeros_like(expert_out))""",
        ),
    ),
    # Sizes that it makes a tensor of.
    f"{_MODULE}_hidream_image:HiDreamImageTransformer2DModel.patchify": (
        (
            """\
        img_sizes = torch.tensor([patch_height, patch_width], dtype=torch.int64, device=device).reshape(-1)
        img_sizes = img_sizes.unsqueeze(0).repeat(batch_size, 1)""",
            """\
        img_sizes = [(patch_height, patch_width)] * batch_size""",
        ),
    ),
    # Text keeps its length and is masked, where it would be cut to what is not. Last bits may differ.
    f"{_MODULE}_lumina2:Lumina2RotaryPosEmbed.forward": (
        (
            """\
        l_effective_cap_len = attention_mask.sum(dim=1).tolist()
        seq_lengths = [cap_seq_len + image_seq_len for cap_seq_len in l_effective_cap_len]
        max_seq_len = max(seq_lengths)

        # Create position IDs
        position_ids = torch.zeros(batch_size, max_seq_len, 3, dtype=torch.int32, device=device)

        for i, (cap_seq_len, seq_len) in enumerate(zip(l_effective_cap_len, seq_lengths)):
            # add caption position ids
            position_ids[i, :cap_seq_len, 0] = torch.arange(cap_seq_len, dtype=torch.int32, device=device)
            position_ids[i, cap_seq_len:seq_len, 0] = cap_seq_len

            # add image position ids
            row_ids = (
                torch.arange(post_patch_height, dtype=torch.int32, device=device)
                .view(-1, 1)
                .repeat(1, post_patch_width)
                .flatten()
            )
            col_ids = (
                torch.arange(post_patch_width, dtype=torch.int32, device=device)
                .view(1, -1)
                .repeat(post_patch_height, 1)
                .flatten()
            )
            position_ids[i, cap_seq_len:seq_len, 1] = row_ids
            position_ids[i, cap_seq_len:seq_len, 2] = col_ids

        # Get combined rotary embeddings
        freqs_cis = self._get_freqs_cis(position_ids)

        # create separate rotary embeddings for captions and images
        cap_freqs_cis = torch.zeros(
            batch_size, encoder_seq_len, freqs_cis.shape[-1], device=device, dtype=freqs_cis.dtype
        )
        img_freqs_cis = torch.zeros(
            batch_size, image_seq_len, freqs_cis.shape[-1], device=device, dtype=freqs_cis.dtype
        )

        for i, (cap_seq_len, seq_len) in enumerate(zip(l_effective_cap_len, seq_lengths)):
            cap_freqs_cis[i, :cap_seq_len] = freqs_cis[i, :cap_seq_len]
            img_freqs_cis[i, :image_seq_len] = freqs_cis[i, cap_seq_len:seq_len]""",
            """\
        l_effective_cap_len = attention_mask.sum(dim=1)
        seq_lengths = l_effective_cap_len + image_seq_len
        rows = torch.arange(post_patch_height, dtype=torch.int32, device=device).repeat_interleave(post_patch_width)
        columns = torch.arange(post_patch_width, dtype=torch.int32, device=device).repeat(post_patch_height)
        text = torch.arange(encoder_seq_len, dtype=torch.int32, device=device).clamp(max=self.axes_lens[0] - 1)
        text = torch.stack([text, torch.zeros_like(text), torch.zeros_like(text)], dim=-1).expand(batch_size, -1, -1)
        begin = l_effective_cap_len.to(torch.int32)[:, None].expand(-1, image_seq_len)
        image = torch.stack([begin, rows.expand_as(begin), columns.expand_as(begin)], dim=-1)
        freqs_cis = self._get_freqs_cis(torch.cat([text, image], dim=1))
        cap_freqs_cis, img_freqs_cis = freqs_cis[:, :encoder_seq_len], freqs_cis[:, encoder_seq_len:]""",
        ),
    ),
    f"{_MODULE}_lumina2:Lumina2Transformer2DModel.forward": (
        (
            """\
        max_seq_len = max(seq_lengths)
        use_mask = len(set(seq_lengths)) > 1

        attention_mask = hidden_states.new_zeros(batch_size, max_seq_len, dtype=torch.bool)
        joint_hidden_states = hidden_states.new_zeros(batch_size, max_seq_len, self.config.hidden_size)
        for i, (encoder_seq_len, seq_len) in enumerate(zip(encoder_seq_lengths, seq_lengths)):
            attention_mask[i, :seq_len] = True
            joint_hidden_states[i, :encoder_seq_len] = encoder_hidden_states[i, :encoder_seq_len]
            joint_hidden_states[i, encoder_seq_len:seq_len] = hidden_states[i]

        hidden_states = joint_hidden_states""",
            """\
        text_length = encoder_hidden_states.shape[1]
        use_mask = True
        attention_mask = torch.arange(text_length, device=hidden_states.device) < encoder_seq_lengths[:, None]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(batch_size, hidden_states.shape[1])], dim=1)
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)""",
        ),
        (
            """\
        output = []
        for i, (encoder_seq_len, seq_len) in enumerate(zip(encoder_seq_lengths, seq_lengths)):
            output.append(
                hidden_states[i][encoder_seq_len:seq_len]""",
            """\
        output = []
        for i in range(batch_size):
            output.append(
                hidden_states[i][text_length:]""",
        ),
    ),
    # The same, at its end.
    f"{_MODULE}_hunyuan_video_framepack:HunyuanVideoFramepackTransformer3DModel.forward": (
        (
            """\
        if batch_size == 1:
            encoder_hidden_states = encoder_hidden_states[:, : effective_condition_sequence_length[0]]
            attention_mask = None
        else:
            for i in range(batch_size):
                attention_mask[i, : effective_sequence_length[i]] = True
            # [B, 1, 1, N], for broadcasting across attention heads
            attention_mask = attention_mask.unsqueeze(1).unsqueeze(1)""",
            """\
        attention_mask = torch.arange(sequence_length, device=hidden_states.device) < effective_sequence_length[:, None]
        attention_mask = attention_mask.unsqueeze(1).unsqueeze(1)""",
        ),
    ),
    # Text is put in order, what is masked out last, and masked. Last bits may differ.
    "diffusers.models.attention_processor:MochiAttnProcessor2_0.__call__": (
        (
            """\
        attn_outputs = []
        for idx in range(batch_size):
            mask = attention_mask[idx][None, :]
            valid_prompt_token_indices = torch.nonzero(mask.flatten(), as_tuple=False).flatten()

            valid_encoder_query = encoder_query[idx : idx + 1, :, valid_prompt_token_indices, :]
            valid_encoder_key = encoder_key[idx : idx + 1, :, valid_prompt_token_indices, :]
            valid_encoder_value = encoder_value[idx : idx + 1, :, valid_prompt_token_indices, :]

            valid_query = torch.cat([query[idx : idx + 1], valid_encoder_query], dim=2)
            valid_key = torch.cat([key[idx : idx + 1], valid_encoder_key], dim=2)
            valid_value = torch.cat([value[idx : idx + 1], valid_encoder_value], dim=2)

            attn_output = F.scaled_dot_product_attention(
                valid_query, valid_key, valid_value, dropout_p=0.0, is_causal=False
            )
            valid_sequence_length = attn_output.size(2)
            attn_output = F.pad(attn_output, (0, 0, 0, total_length - valid_sequence_length))
            attn_outputs.append(attn_output)

        hidden_states = torch.cat(attn_outputs, dim=0)""",
            """\
        valid = attention_mask.bool()
        order = torch.argsort((~valid).to(torch.int8), dim=1, stable=True)
        index = order[:, None, :, None].expand(-1, heads, -1, dim)
        query, key, value = (
            torch.cat([image, torch.gather(text, 2, index)], dim=2)
            for image, text in ((query, encoder_query), (key, encoder_key), (value, encoder_value))
        )
        valid = torch.gather(valid, 1, order)
        valid = torch.cat([valid.new_ones(batch_size, sequence_length), valid], dim=1)
        hidden_states = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None], dropout_p=0.0)
        hidden_states = torch.where(valid[:, None, :, None], hidden_states, torch.zeros_like(hidden_states))""",
        ),
    ),
}
