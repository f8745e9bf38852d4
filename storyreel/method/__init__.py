"""The paper's method as pure functions of tensors: no model, file, random state or device."""
