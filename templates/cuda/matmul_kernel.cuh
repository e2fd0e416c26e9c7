
<% if alone %>
KERNEL_RESIDENT(<$ name $>, <$ threads $>, <$ resident $>, Params) { multiply_rows(p, block_y(), grid_y()); }
<% endif %>
